//! Devices → specs of ResourceSlices, without reading or writing anything.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::{Device as ApiDevice, ResourcePool, ResourceSliceSpec};

use crate::device::{Device, attributes::api_device};

/// Devices in a slice (`ResourceSliceMaxDevices` in `k8s.io/api/resource/v1`).
pub const MAX_DEVICES: usize = 128;

/// Devices in a slice of which one has taints or consumes counters
/// (`ResourceSliceMaxDevicesWithTaintsOrConsumesCounters`).
pub const MAX_DEVICES_WITH_TAINTS: usize = 64;

/// The slices of this node's one pool, which has the node's name, for links alone.
#[must_use]
pub fn slices<'a>(
    published: impl IntoIterator<Item = &'a Device>,
    node: &str,
    driver: &str,
) -> Vec<ResourceSliceSpec> {
    slices_of(published.into_iter().map(api_device), node, driver)
}

/// The slices of this node's one pool, which has the node's name.
///
/// Devices come in the order of their names, so that equal devices give equal slices. There is always at least
/// one slice: an empty pool says that the driver runs and has nothing, no pool says that it does not run.
/// The pool's generation is left at 0; only the publisher knows it.
#[must_use]
pub fn slices_of(
    published: impl IntoIterator<Item = ApiDevice>,
    node: &str,
    driver: &str,
) -> Vec<ResourceSliceSpec> {
    let by_name: BTreeMap<String, ApiDevice> =
        published.into_iter().map(|device| (device.name.clone(), device)).collect();
    let devices: Vec<ApiDevice> = by_name.into_values().collect();
    let mut chunks: Vec<Vec<ApiDevice>> =
        devices.chunks(devices_per_slice(&devices)).map(<[ApiDevice]>::to_vec).collect();
    if chunks.is_empty() {
        chunks.push(Vec::new());
    }
    let count = i64::try_from(chunks.len()).unwrap_or(i64::MAX);
    chunks
        .into_iter()
        .map(|devices| ResourceSliceSpec {
            driver: driver.to_owned(),
            node_name: Some(node.to_owned()),
            pool: ResourcePool { name: node.to_owned(), generation: 0, resource_slice_count: count },
            devices: Some(devices),
            ..ResourceSliceSpec::default()
        })
        .collect()
}

fn devices_per_slice(devices: &[ApiDevice]) -> usize {
    let limited = |device: &ApiDevice| {
        device.taints.as_ref().is_some_and(|taints| !taints.is_empty())
            || device.consumes_counters.as_ref().is_some_and(|counters| !counters.is_empty())
    };
    if devices.iter().any(limited) { MAX_DEVICES_WITH_TAINTS } else { MAX_DEVICES }
}

#[cfg(test)]
#[path = "slices_tests.rs"]
mod tests;
