//! Claims of the folder: the user's file and the driver's status file as one object.

use std::{collections::BTreeMap, io};

use k8s_openapi::{
    api::resource::v1::{
        AllocatedDeviceStatus, DeviceRequestAllocationResult, ResourceClaim, ResourceClaimConsumerReference,
        ResourceClaimStatus,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    Shared,
    allocate::{self, AllocateError, Share, Taken},
    folder::Folder,
    unavailable, written,
};
use crate::{claim::ClaimRef, cluster::ClusterError};

/// Annotation of a claim: the pods it is reserved for, `<pod>=<uid>[,<pod>=<uid>…]`.
pub const RESERVED_FOR: &str = "netferry.dev/reserved-for";
/// Annotation of a status file: which spec was allocated.
const SPEC: &str = "netferry.dev/spec";
const KIND: &str = "ResourceClaim";

/// The UID of a claim that has none in its file: the 128-bit FNV-1a hash of `claim/<namespace>/<name>` in the
/// form of a version 8 UUID (RFC 9562, section 5.8), so it is the same after a restart and on any machine.
#[must_use]
pub fn derived_uid(namespace: &str, name: &str) -> String {
    uid(&format!("claim/{namespace}/{name}"))
}

pub(super) fn uid(text: &str) -> String {
    let hash = (fnv(text) & !(0xf << 76) & !(0x3 << 62)) | (0x8 << 76) | (0x2 << 62);
    let hex = format!("{hash:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The next resourceVersion of an object.
pub(super) fn next_version(version: &str) -> String {
    (version.parse::<u64>().unwrap_or(0) + 1).to_string()
}

/// FNV-1a, 128 bits (draft-eastlake-fnv).
fn fnv(text: &str) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    text.bytes().fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

impl Shared {
    /// One claim, allocated.
    pub(super) fn claim(&self, namespace: &str, name: &str) -> Result<ResourceClaim, ClusterError> {
        let folder = Folder::read(&self.root);
        let claim = find(&folder, namespace, name)?;
        self.allocated(&folder, claim)
    }

    /// Every claim; one that cannot be allocated now is given without allocation.
    pub(super) fn claims(&self) -> Result<Vec<ResourceClaim>, ClusterError> {
        let folder = Folder::read(&self.root);
        let whole = |claim| self.allocated(&folder, claim).or_else(|_| self.merged(claim));
        folder.claims.values().map(whole).collect()
    }

    /// Take over the status of our devices, as the `status` subresource would.
    pub(super) fn apply(
        &self,
        reference: &ClaimRef,
        devices: Vec<AllocatedDeviceStatus>,
    ) -> Result<(), ClusterError> {
        let folder = Folder::read(&self.root);
        let claim = find(&folder, &reference.namespace, &reference.name)?;
        let mut claim = self.merged(claim)?;
        if claim.metadata.uid.as_ref() != Some(&reference.uid) {
            let uid = claim.metadata.uid.unwrap_or_default();
            let message = format!("metadata.uid: {:?} was meant, but it is {uid:?} now", reference.uid);
            return Err(ClusterError::Conflict { kind: KIND, name: reference.to_string(), message });
        }
        let status = claim.status.get_or_insert_default();
        for (index, device) in devices.iter().enumerate() {
            let allocated = results(status).any(|result| {
                result.driver == device.driver
                    && result.pool == device.pool
                    && result.device == device.device
                    && result.share_id == device.share_id
            });
            if !allocated || device.driver != self.driver {
                let (pool, device) = (&device.pool, &device.device);
                let message =
                    format!("status.devices[{index}]: {pool}/{device} is not allocated to the claim");
                return Err(refused(&reference.to_string(), message));
            }
        }
        let before = status.devices.take().unwrap_or_default();
        let others = before.iter().filter(|device| device.driver != self.driver).cloned();
        let after: Vec<_> = others.chain(devices).collect();
        if after == before {
            return Ok(());
        }
        status.devices = (!after.is_empty()).then_some(after);
        self.write_status(claim).map(drop)
    }

    /// The claim with an allocation: the user's, the kept one, or a new one, which is kept.
    fn allocated(&self, folder: &Folder, claim: &ResourceClaim) -> Result<ResourceClaim, ClusterError> {
        let mut merged = self.merged(claim)?;
        if merged.status.as_ref().is_some_and(|status| status.allocation.is_some()) {
            return Ok(merged);
        }
        let name = display(&merged);
        let slices = self.allocatable()?;
        let taken = self.taken(folder, claim)?;
        let allocation = allocate::allocate(&allocate::Question {
            claim: &merged,
            classes: &folder.classes,
            slices: &slices,
            driver: &self.driver,
            node: &self.node,
            taken: &taken,
        })
        .map_err(|error| match error {
            AllocateError::Unsatisfied { .. } | AllocateError::NoClass { .. } => ClusterError::Unavailable {
                action: format!("allocate ResourceClaim {name}"),
                source: hint(error, folder),
            },
            other => refused(&name, other.to_string()),
        })?;
        merged.status.get_or_insert_default().allocation = Some(allocation);
        self.write_status(merged)
    }

    /// Devices of this driver that other claims have.
    fn taken(&self, folder: &Folder, but: &ResourceClaim) -> Result<Taken, ClusterError> {
        let mut taken = Taken::new();
        for claim in folder.claims.values().filter(|claim| !std::ptr::eq(*claim, but)) {
            let given = claim.status.clone().filter(|status| status.allocation.is_some());
            let status = match given {
                Some(status) => Some(status),
                None => self.stored(claim)?.and_then(|stored| stored.status),
            };
            for result in status.iter().flat_map(results) {
                if result.driver == self.driver && result.admin_access != Some(true) {
                    let consumed = result.consumed_capacity.clone().unwrap_or_default();
                    let share = Share { claim: display(claim), consumed };
                    taken.entry((result.pool.clone(), result.device.clone())).or_default().push(share);
                }
            }
        }
        Ok(taken)
    }

    /// The user's claim with what the status file adds: uid, allocation, device status, resourceVersion.
    pub(super) fn merged(&self, claim: &ResourceClaim) -> Result<ResourceClaim, ClusterError> {
        let mut merged = claim.clone();
        let name = display(claim);
        merged.metadata.uid = Some(effective_uid(claim));
        let reserved = reserved_for(claim).map_err(|message| refused(&name, message))?;
        let stored = self.stored(claim)?;
        let version = stored.as_ref().and_then(|stored| stored.metadata.resource_version.clone());
        merged.metadata.resource_version = Some(version.unwrap_or_else(|| "0".to_owned()));
        let status = merged.status.get_or_insert_default();
        status.reserved_for = status.reserved_for.take().or(reserved);
        let Some(stored) = stored else { return Ok(merged) };
        let kept = stored.status.unwrap_or_default();
        if status.allocation.is_none() && kept.allocation.is_some() {
            let annotations = stored.metadata.annotations.unwrap_or_default();
            if annotations.get(SPEC) != Some(&fingerprint(claim)) {
                let file = self.status_file(claim);
                return Err(refused(
                    &name,
                    format!(
                        "spec: it has changed since the claim was allocated, and is immutable; stop the claim's \
                         pod and remove {} to allocate it anew",
                        file.display()
                    ),
                ));
            }
            status.allocation = kept.allocation;
        }
        status.devices = kept.devices;
        Ok(merged)
    }

    /// The status file, if it is this claim's and not that of a former one under the same name.
    fn stored(&self, claim: &ResourceClaim) -> Result<Option<ResourceClaim>, ClusterError> {
        let file = self.status_file(claim);
        let stored: Option<ResourceClaim> = written::read(&file).map_err(|error| {
            // Without it nobody knows which device the claim has: better none than two.
            if error.kind() == io::ErrorKind::InvalidData {
                refused(&display(claim), format!("its status file is broken; mend or remove it: {error}"))
            } else {
                unavailable(&format!("read {}", file.display()), error)
            }
        })?;
        Ok(stored.filter(|stored| stored.metadata.uid.as_deref() == Some(&effective_uid(claim))))
    }

    fn status_file(&self, claim: &ResourceClaim) -> std::path::PathBuf {
        let (namespace, name) = names(claim);
        written::status_file(&self.root, namespace, name)
    }

    /// Write the status file; returns the claim with its new resourceVersion.
    fn write_status(&self, mut claim: ResourceClaim) -> Result<ResourceClaim, ClusterError> {
        let version = claim.metadata.resource_version.as_deref().unwrap_or_default();
        claim.metadata.resource_version = Some(next_version(version));
        let stored = ResourceClaim {
            metadata: ObjectMeta {
                name: claim.metadata.name.clone(),
                namespace: claim.metadata.namespace.clone(),
                uid: claim.metadata.uid.clone(),
                resource_version: claim.metadata.resource_version.clone(),
                annotations: Some(BTreeMap::from([(SPEC.to_owned(), fingerprint(&claim))])),
                ..ObjectMeta::default()
            },
            spec: claim.spec.clone(),
            status: claim.status.clone(),
        };
        let file = self.status_file(&claim);
        written::write(&file, &stored)
            .map_err(|error| unavailable(&format!("write {}", file.display()), error))?;
        Ok(claim)
    }
}

fn find<'a>(folder: &'a Folder, namespace: &str, name: &str) -> Result<&'a ResourceClaim, ClusterError> {
    let key = (namespace.to_owned(), name.to_owned());
    folder.claims.get(&key).ok_or_else(|| {
        let hiding = folder.hiding(namespace, name);
        let name = format!("{namespace}/{name}");
        if hiding.is_empty() {
            ClusterError::NotFound { kind: KIND, name }
        } else {
            refused(&name, format!("it cannot be read: {}", hiding.join("; ")))
        }
    })
}

/// A class that cannot be found may be one that cannot be read.
fn hint(error: AllocateError, folder: &Folder) -> Box<dyn std::error::Error + Send + Sync> {
    let unread: Vec<String> =
        folder.problems.iter().filter(|problem| problem.claim.is_none()).map(ToString::to_string).collect();
    match error {
        AllocateError::NoClass { .. } if !unread.is_empty() => {
            format!("{error}; not read: {}", unread.join("; ")).into()
        }
        _ => Box::new(error),
    }
}

fn results(status: &ResourceClaimStatus) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let devices = status.allocation.as_ref().and_then(|allocation| allocation.devices.as_ref());
    devices.and_then(|devices| devices.results.as_ref()).into_iter().flatten()
}

fn names(claim: &ResourceClaim) -> (&str, &str) {
    let metadata = &claim.metadata;
    (metadata.namespace.as_deref().unwrap_or("default"), metadata.name.as_deref().unwrap_or_default())
}

fn display(claim: &ResourceClaim) -> String {
    let (namespace, name) = names(claim);
    format!("{namespace}/{name}")
}

fn effective_uid(claim: &ResourceClaim) -> String {
    let (namespace, name) = names(claim);
    claim.metadata.uid.clone().unwrap_or_else(|| derived_uid(namespace, name))
}

fn fingerprint(claim: &ResourceClaim) -> String {
    // A spec that was read from YAML can always be written as JSON again.
    format!("{:032x}", fnv(&serde_json::to_string(&claim.spec).unwrap_or_default()))
}

fn reserved_for(claim: &ResourceClaim) -> Result<Option<Vec<ResourceClaimConsumerReference>>, String> {
    let Some(text) = claim.metadata.annotations.as_ref().and_then(|all| all.get(RESERVED_FOR)) else {
        return Ok(None);
    };
    let pod = |part: &str| match part.trim().split_once('=') {
        Some((name, uid)) if !name.is_empty() && !uid.is_empty() => Ok(ResourceClaimConsumerReference {
            resource: "pods".to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            ..ResourceClaimConsumerReference::default()
        }),
        _ => Err(format!("metadata.annotations[{RESERVED_FOR}]: {part:?} is not <pod>=<uid>")),
    };
    text.split(',').map(pod).collect::<Result<_, _>>().map(Some)
}

fn refused(name: &str, message: String) -> ClusterError {
    ClusterError::Refused { kind: KIND, name: name.to_owned(), code: 422, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_is_fnv() {
        // Test vectors of draft-eastlake-fnv.
        assert_eq!(fnv(""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(fnv("a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn derived_uids_are_stable_uuids() {
        let uid = derived_uid("default", "a");
        assert_eq!(uid, derived_uid("default", "a"));
        assert_ne!(uid, derived_uid("default", "b"));
        assert_ne!(derived_uid("a", "b/c"), derived_uid("a/b", "c-"));
        let parts: Vec<_> = uid.split('-').collect();
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert!(parts[2].starts_with('8'), "{uid}");
        assert!(parts[3].starts_with(['8', '9', 'a', 'b']), "{uid}");
    }
}
