//! Allocation of a claim from the driver's own slices, as the scheduler's structured allocator does it
//! (kubernetes `dynamic-resource-allocation/structured`): pure, and the same answer for the same question.

mod capacity;
mod requests;
mod search;

use std::{collections::BTreeMap, fmt::Write as _};

use k8s_openapi::api::{
    core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm},
    resource::v1::{
        AllocationResult, Device, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceClass,
        DeviceRequestAllocationResult, ResourceClaim, ResourceSlice,
    },
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::claims;
use crate::selector::SelectorError;
use capacity::Room;
use requests::Alternative;

/// Devices that other claims have: by pool and device.
pub(super) type Taken = BTreeMap<(String, String), Vec<Share>>;

/// What a claim has of a device.
#[derive(Clone, Debug)]
pub(super) struct Share {
    /// The claim's name.
    pub(super) claim: String,
    /// What it uses up of the device's capacities; nothing for a device that is the claim's alone.
    pub(super) consumed: BTreeMap<String, Quantity>,
}

/// All that an allocation depends on.
pub(super) struct Question<'a> {
    /// The claim.
    pub(super) claim: &'a ResourceClaim,
    /// Classes by name.
    pub(super) classes: &'a BTreeMap<String, DeviceClass>,
    /// The driver's slices that are of this node, or of all nodes.
    pub(super) slices: &'a [ResourceSlice],
    /// The driver.
    pub(super) driver: &'a str,
    /// The node.
    pub(super) node: &'a str,
    /// Devices that are not free.
    pub(super) taken: &'a Taken,
}

/// Why there is no allocation.
#[derive(Debug, thiserror::Error)]
pub(super) enum AllocateError {
    /// The claim or its class can never be allocated as it is.
    #[error("{field}: {message}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// Value and what is allowed.
        message: String,
    },
    /// A selector says neither yes nor no.
    #[error("{field}: {source}")]
    Selector {
        /// Path of the selector.
        field: String,
        /// Why.
        #[source]
        source: SelectorError,
    },
    /// The class is not in the folder (yet).
    #[error("{field}: there is no DeviceClass {class:?}")]
    NoClass {
        /// Path of the field.
        field: String,
        /// Its value.
        class: String,
    },
    /// No free devices fit (now).
    #[error("{message}")]
    Unsatisfied {
        /// What was looked for, what there is, and who has the rest.
        message: String,
    },
}

/// A published device.
#[derive(Clone, Copy, Debug)]
struct Candidate<'a> {
    pool: &'a str,
    device: &'a Device,
}

/// Find devices for every request of the claim.
pub(super) fn allocate(question: &Question<'_>) -> Result<AllocationResult, AllocateError> {
    let candidates = candidates(question.slices);
    let requests = requests::expand(question, &candidates)?;
    if requests.is_empty() {
        return Err(AllocateError::Invalid {
            field: "spec.devices.requests".to_owned(),
            message: "empty; at least one request is needed".to_owned(),
        });
    }
    let constraints = search::constraints(question)?;
    let room = |candidate: &Candidate<'_>| {
        let key = (candidate.pool.to_owned(), candidate.device.name.clone());
        Room::of(candidate.device, question.taken.get(&key).map(Vec::as_slice).unwrap_or_default())
    };
    let room: Vec<Room> = candidates.iter().map(room).collect();
    let chosen = search::search(question.driver, &requests, &constraints, &candidates, &room)
        .ok_or_else(|| unsatisfied(question, &requests, &candidates, &room))?;
    Ok(AllocationResult {
        allocation_timestamp: None,
        devices: Some(DeviceAllocationResult {
            config: Some(configuration(question, &chosen)).filter(|config| !config.is_empty()),
            results: Some(results(question, &chosen, &candidates)),
        }),
        node_selector: Some(this_node(question.node)),
    })
}

/// Devices of every pool that is published whole, in the newest generation.
fn candidates(slices: &[ResourceSlice]) -> Vec<Candidate<'_>> {
    let mut pools: BTreeMap<&str, Vec<&ResourceSlice>> = BTreeMap::new();
    for slice in slices {
        let pool = pools.entry(&slice.spec.pool.name).or_default();
        let newest = pool.first().map_or(i64::MIN, |slice| slice.spec.pool.generation);
        if slice.spec.pool.generation > newest {
            pool.clear();
        }
        if slice.spec.pool.generation >= newest {
            pool.push(slice);
        }
    }
    // In a pool that is being rewritten a device may be missing or twice: the scheduler waits too.
    pools.retain(|_, slices| {
        let wanted = slices.first().map_or(0, |slice| slice.spec.pool.resource_slice_count);
        usize::try_from(wanted).is_ok_and(|wanted| wanted == slices.len())
    });
    let mut candidates = Vec::new();
    for (pool, slices) in pools {
        for slice in slices {
            candidates.extend(slice.spec.devices.iter().flatten().map(|device| Candidate { pool, device }));
        }
    }
    candidates.sort_by(|a, b| (a.pool, &a.device.name).cmp(&(b.pool, &b.device.name)));
    candidates
}

fn results(
    question: &Question<'_>,
    chosen: &[search::Pick<'_>],
    candidates: &[Candidate<'_>],
) -> Vec<DeviceRequestAllocationResult> {
    let picks = chosen.iter().flat_map(|pick| pick.devices.iter().map(|index| (pick.alternative, *index)));
    picks
        .enumerate()
        .map(|(number, (alternative, index))| {
            let candidate = &candidates[index];
            let shared = capacity::is_shared(candidate.device) && !alternative.admin;
            let consumed = capacity::consumed(candidate.device, &alternative.capacity).unwrap_or_default();
            // The same question has the same answer, so what tells shares apart is made from the claim.
            let claim = question.claim.metadata.uid.as_deref().unwrap_or_default();
            let share = || claims::uid(&format!("share/{claim}/{number}"));
            DeviceRequestAllocationResult {
                request: alternative.name.clone(),
                driver: question.driver.to_owned(),
                pool: candidate.pool.to_owned(),
                device: candidate.device.name.clone(),
                admin_access: alternative.admin.then_some(true),
                tolerations: alternative.tolerations.clone(),
                share_id: shared.then(share),
                consumed_capacity: (shared && !consumed.is_empty()).then_some(consumed),
                ..DeviceRequestAllocationResult::default()
            }
        })
        .collect()
}

/// Class configurations request by request, then the claim's: the order in which a driver lets the later win.
fn configuration(question: &Question<'_>, chosen: &[search::Pick<'_>]) -> Vec<DeviceAllocationConfiguration> {
    let mut configuration = Vec::new();
    for pick in chosen {
        let class = question.classes.get(&pick.alternative.class);
        for config in class.and_then(|class| class.spec.config.as_ref()).into_iter().flatten() {
            configuration.push(DeviceAllocationConfiguration {
                source: "FromClass".to_owned(),
                requests: Some(vec![pick.alternative.name.clone()]),
                opaque: config.opaque.clone(),
            });
        }
    }
    let claim = question.claim.spec.devices.as_ref();
    for config in claim.and_then(|claim| claim.config.as_ref()).into_iter().flatten() {
        let meant = config.requests.as_ref().filter(|requests| !requests.is_empty());
        let applies = |requests: &Vec<String>| {
            chosen.iter().any(|pick| requests.iter().any(|request| pick.alternative.is_meant_by(request)))
        };
        // A configuration for a sub-request that was not chosen has nothing to configure.
        if meant.is_none_or(applies) {
            configuration.push(DeviceAllocationConfiguration {
                source: "FromClaim".to_owned(),
                requests: config.requests.clone(),
                opaque: config.opaque.clone(),
            });
        }
    }
    configuration
}

fn this_node(node: &str) -> NodeSelector {
    NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node.to_owned()]),
            }]),
            ..NodeSelectorTerm::default()
        }],
    }
}

fn unsatisfied(
    question: &Question<'_>,
    requests: &[Vec<Alternative<'_>>],
    candidates: &[Candidate<'_>],
    room: &[Room],
) -> AllocateError {
    let mut message = format!("{} devices are published", candidates.len());
    for alternative in requests.iter().flatten() {
        let fit = alternative.eligible.len();
        let has_room = |index: &usize| room[*index].fits(candidates[*index].device, &alternative.capacity);
        let usable = alternative.eligible.iter().filter(|index| has_room(index)).count();
        // Writing to a String cannot fail.
        let _ = write!(
            message,
            "; request {:?} wants {}, {fit} fit, {usable} of them free",
            alternative.name, alternative.wants
        );
        for index in alternative.eligible.iter().filter(|index| !has_room(index)) {
            let candidate = &candidates[*index];
            let key = (candidate.pool.to_owned(), candidate.device.name.clone());
            let name = &candidate.device.name;
            let _ = match question.taken.get(&key).map(Vec::as_slice) {
                Some([owner]) => write!(message, " ({name} belongs to claim {})", owner.claim),
                Some(owners) => write!(message, " ({name} is shared by {} claims)", owners.len()),
                None => write!(message, " ({name} has less capacity)"),
            };
        }
    }
    AllocateError::Unsatisfied { message }
}

#[cfg(test)]
mod tests;
