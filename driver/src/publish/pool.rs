//! What has to be written so that a pool's slices become the desired ones.
//!
//! The rules are those of Kubernetes' own controller
//! (`k8s.io/dynamic-resource-allocation/resourceslice/resourceslicecontroller.go`): a scheduler takes a pool as
//! complete when it sees `resourceSliceCount` slices of the highest generation. A change that one write can
//! make keeps the generation; one that needs several raises it, so that no mixture of old and new slices ever
//! looks complete.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::resource::v1::{Device as ApiDevice, ResourcePool, ResourceSlice, ResourceSliceSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

/// Hexadecimal digits in front of a slice's name: the scheduler tries slices in the order of their names.
const INDEX_DIGITS: usize = 5;

/// Devices by slice index that the server stored otherwise than they were sent (fields of features that are
/// off are dropped): sent, stored. Sending them again would change nothing, for ever.
pub type Altered = BTreeMap<usize, (Vec<ApiDevice>, Vec<ApiDevice>)>;

/// Writes, in the order in which they have to be made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Writes {
    /// Names of obsolete slices. They go first: devices that no longer exist must not be allocated, even if the
    /// rest fails.
    pub delete: Vec<String>,
    /// Slices to replace, by index, with the resource version that was read.
    pub update: BTreeMap<usize, ResourceSlice>,
    /// Slices to create, by index.
    pub create: BTreeMap<usize, ResourceSlice>,
    /// The pool's generation afterwards.
    pub generation: i64,
}

impl Writes {
    /// Nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.update.is_empty() && self.create.is_empty()
    }
}

/// The writes that turn the slices `current` of this driver and node into `desired`. Slices of another pool
/// are obsolete.
#[must_use]
pub fn writes(
    current: &[ResourceSlice],
    desired: &[ResourceSliceSpec],
    owner: Option<&OwnerReference>,
    altered: &Altered,
) -> Writes {
    let Some(pool) = desired.first().map(|spec| &spec.pool) else {
        return Writes { delete: current.iter().map(name).collect(), ..Writes::default() };
    };
    let of_pool = |slice: &&ResourceSlice| slice.spec.pool.name == pool.name;
    let newest = current.iter().filter(of_pool).map(|slice| slice.spec.pool.generation).max().unwrap_or(0);

    let mut matched: BTreeMap<usize, &ResourceSlice> = BTreeMap::new();
    let mut delete = Vec::new();
    let mut sorted: Vec<_> = current.iter().collect();
    sorted.sort_by_key(|slice| name(slice));
    for slice in sorted {
        let index = index_of(slice).filter(|index| *index < desired.len() && !matched.contains_key(index));
        match index {
            Some(index) if of_pool(&slice) && slice.spec.pool.generation == newest => {
                matched.insert(index, slice);
            }
            _ => delete.push(name(slice)),
        }
    }

    let wanted = ResourcePool { generation: newest, ..pool.clone() };
    let changed: BTreeSet<usize> = matched
        .iter()
        .filter(|(index, slice)| {
            slice.spec.pool != wanted
                || !is_owned(slice, owner)
                || !same_devices(slice, &desired[**index], altered.get(index))
        })
        .map(|(index, _)| *index)
        .collect();
    let keeps_generation = matched.len() == desired.len() && changed.len() <= 1;
    let wanted = ResourcePool { generation: newest + i64::from(!keeps_generation), ..wanted };

    let mut writes = Writes { delete, generation: wanted.generation, ..Writes::default() };
    for (index, spec) in desired.iter().enumerate() {
        let spec = ResourceSliceSpec { pool: wanted.clone(), ..spec.clone() };
        match matched.get(&index) {
            Some(_) if keeps_generation && !changed.contains(&index) => {}
            Some(slice) => {
                let mut slice = (*slice).clone();
                slice.spec = spec;
                if !is_owned(&slice, owner) {
                    slice.metadata.owner_references = owner.map(|owner| vec![owner.clone()]);
                }
                writes.update.insert(index, slice);
            }
            None => {
                writes.create.insert(index, new_slice(index, spec, owner));
            }
        }
    }
    writes
}

fn new_slice(index: usize, spec: ResourceSliceSpec, owner: Option<&OwnerReference>) -> ResourceSlice {
    // A pool that belongs to no node is told by its own name.
    let of = spec.node_name.clone().unwrap_or_else(|| spec.pool.name.replace('/', "."));
    ResourceSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{index:0INDEX_DIGITS$x}-{}-{of}-", spec.driver)),
            owner_references: owner.map(|owner| vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec,
    }
}

fn name(slice: &ResourceSlice) -> String {
    slice.metadata.name.clone().unwrap_or_default()
}

/// The index in front of the slice's name; `None` if somebody else named it.
fn index_of(slice: &ResourceSlice) -> Option<usize> {
    let (digits, _) = slice.metadata.name.as_deref()?.split_once('-')?;
    (digits.len() == INDEX_DIGITS).then_some(())?;
    usize::from_str_radix(digits, 16).ok()
}

fn is_owned(slice: &ResourceSlice, owner: Option<&OwnerReference>) -> bool {
    // Without an owner (standalone) whatever is there may stay.
    owner.is_none_or(|owner| {
        slice.metadata.owner_references.iter().flatten().any(|reference| reference.uid == owner.uid)
    })
}

/// Equal but for what a server adds or drops.
fn same_devices(
    slice: &ResourceSlice,
    desired: &ResourceSliceSpec,
    altered: Option<&(Vec<ApiDevice>, Vec<ApiDevice>)>,
) -> bool {
    let stored = plain(slice.spec.devices.as_deref());
    let wanted = plain(desired.devices.as_deref());
    stored == wanted || altered.is_some_and(|(sent, kept)| *sent == wanted && *kept == stored)
}

/// Devices without what is absent or empty alike, and without the times that a server gives taints.
#[must_use]
pub fn plain(devices: Option<&[ApiDevice]>) -> Vec<ApiDevice> {
    devices
        .unwrap_or_default()
        .iter()
        .cloned()
        .map(|mut device| {
            device.attributes = device.attributes.filter(|attributes| !attributes.is_empty());
            device.capacity = device.capacity.filter(|capacity| !capacity.is_empty());
            device.consumes_counters = device.consumes_counters.filter(|counters| !counters.is_empty());
            device.taints = device.taints.filter(|taints| !taints.is_empty());
            for taint in device.taints.iter_mut().flatten() {
                taint.time_added = None;
            }
            device
        })
        .collect()
}
