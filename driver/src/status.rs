//! What is told about a claim: its device status, conditions and Events.
//!
//! [`device_statuses`] is pure; [`Reporter`] writes what it says, until it is written.

mod reporter;

pub use reporter::{Backoff, Checkpoints, Reporter};

use std::collections::BTreeSet;

use jiff::{Timestamp, Unit};
use k8s_openapi::{
    api::resource::v1::{
        AllocatedDeviceStatus, DeviceRequestAllocationResult, NetworkDeviceData, ResourceClaim,
    },
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};

use crate::{
    claim::{Checkpoint, InterfaceRecord, Made, Step},
    datapath::Isolation,
};

/// Condition: the pod can use the interface.
pub const READY: &str = "Ready";
/// Condition: name, hardware address, MTU, addresses and routes are set, and the link is up.
pub const NETWORK_READY: &str = "NetworkReady";
/// Condition: the driver's programs are on the interface.
pub const PROGRAMS_ATTACHED: &str = "ProgramsAttached";

/// Limits of the API server (`pkg/apis/resource/validation/validation.go` and `ValidateConditions`).
const MESSAGE_BYTES: usize = 32 * 1024;
const IPS: usize = 16;
const INTERFACE_NAME_BYTES: usize = 256;
const HARDWARE_ADDRESS_BYTES: usize = 128;

/// What the driver could not do for a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Where.
    pub stage: Stage,
    /// Names the field, the value and what is allowed, or what the kernel said.
    pub message: String,
}

/// Where a claim's way into a pod ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before the sandbox exists; there is no checkpoint.
    Prepare,
    /// In the sandbox hook; everything was rolled back.
    Attach,
}

impl Stage {
    const fn reason(self) -> &'static str {
        match self {
            Self::Prepare => "PrepareFailed",
            Self::Attach => "AttachFailed",
        }
    }
}

/// Everything that decides a claim's device status.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The claim as the cluster has it: its allocation says for which devices a status may be written, and its
    /// `status.devices` which transition times are kept.
    pub claim: &'a ResourceClaim,
    /// This driver.
    pub driver: &'a str,
    /// What was done; `None` before prepare and after unprepare.
    pub checkpoint: Option<&'a Checkpoint>,
    /// What could not be done, if nothing has succeeded since.
    pub failure: Option<&'a Failure>,
    /// The moment of observation.
    pub now: Timestamp,
}

/// The status of this driver's devices in a claim; empty when the driver has nothing to say about it.
#[must_use]
pub fn device_statuses(observed: &Observed<'_>) -> Vec<AllocatedDeviceStatus> {
    if observed.checkpoint.is_none() && observed.failure.is_none() {
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    allocated(observed.claim, observed.driver)
        // Two requests with admin access can name one device, but its status is one entry.
        .filter(|result| seen.insert((&result.pool, &result.device, &result.share_id)))
        .map(|result| device_status(observed, result))
        .collect()
}

/// This driver's entries of a claim's `status.devices`.
pub fn reported<'a>(
    claim: &'a ResourceClaim,
    driver: &'a str,
) -> impl Iterator<Item = &'a AllocatedDeviceStatus> {
    let devices = claim.status.as_ref().and_then(|status| status.devices.as_ref());
    devices.into_iter().flatten().filter(move |device| device.driver == driver)
}

fn allocated<'a>(
    claim: &'a ResourceClaim,
    driver: &'a str,
) -> impl Iterator<Item = &'a DeviceRequestAllocationResult> {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let results = allocation.and_then(|allocation| allocation.devices.as_ref()?.results.as_ref());
    results.into_iter().flatten().filter(move |result| result.driver == driver)
}

fn device_status(observed: &Observed<'_>, result: &DeviceRequestAllocationResult) -> AllocatedDeviceStatus {
    let interfaces =
        observed.checkpoint.map(|checkpoint| checkpoint.interfaces.as_slice()).unwrap_or_default();
    let record = interfaces.iter().find(|record| {
        let plan = &record.plan;
        plan.pool == result.pool && plan.device == result.device && plan.share_id == result.share_id
    });
    // An address has no interface of its own: what there is to tell of it is told of the port that has it.
    let holder = record.or_else(|| interfaces.iter().find(|record| gives(record, result)));
    let previous = reported(observed.claim, observed.driver).find(|device| {
        device.pool == result.pool && device.device == result.device && device.share_id == result.share_id
    });
    // The conditions of the port are the port's: an address is ready with it, and that is all there is to say.
    let of_address = record.is_none() && holder.is_some();
    let conditions = conditions(holder, observed.failure)
        .into_iter()
        .filter(|finding| !of_address || finding.type_ == READY)
        .map(|finding| finding.condition(observed, previous))
        .collect();
    AllocatedDeviceStatus {
        driver: result.driver.clone(),
        pool: result.pool.clone(),
        device: result.device.clone(),
        share_id: result.share_id.clone(),
        conditions: Some(conditions),
        network_data: record.and_then(network_data),
        data: None,
    }
}

/// Whether a result is an address of a record's port.
fn gives(record: &InterfaceRecord, result: &DeviceRequestAllocationResult) -> bool {
    let given = record.plan.port().map(|port| port.given.as_slice()).unwrap_or_default();
    given.iter().any(|given| given.pool == result.pool && given.device == result.device)
}

/// A condition before it is compared with the previous one.
struct Finding {
    type_: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Finding {
    fn condition(self, observed: &Observed<'_>, previous: Option<&AllocatedDeviceStatus>) -> Condition {
        let status = if self.holds { "True" } else { "False" };
        let before = previous
            .and_then(|device| device.conditions.as_ref())
            .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == self.type_))
            .filter(|condition| condition.status == status);
        // The API keeps whole seconds; a finer time would differ from itself when read back.
        let now = observed.now.round(Unit::Second).unwrap_or(observed.now);
        Condition {
            type_: self.type_.to_owned(),
            status: status.to_owned(),
            reason: self.reason.to_owned(),
            message: cut(self.message, MESSAGE_BYTES),
            last_transition_time: before
                .map_or(Time(now), |condition| condition.last_transition_time.clone()),
            observed_generation: observed.claim.metadata.generation,
        }
    }
}

fn conditions(record: Option<&InterfaceRecord>, failure: Option<&Failure>) -> [Finding; 3] {
    let all = |reason: &'static str, message: String| {
        [READY, NETWORK_READY, PROGRAMS_ATTACHED].map(|type_| Finding {
            type_,
            holds: false,
            reason,
            message: message.clone(),
        })
    };
    let failed = |failure: &Failure| all(failure.stage.reason(), failure.message.clone());
    let Some(record) = record else {
        return failure.map_or_else(
            || all("NotPrepared", "the claim's checkpoint does not name this device".to_owned()),
            failed,
        );
    };
    let Some(attachment) = &record.attachment else {
        if record.plan.lacks_address() {
            return all("LeaseLost", format!("{} has lost its address by DHCP", subject(record)));
        }
        // A prepare that succeeded has overtaken its own earlier failure.
        return match failure.filter(|failure| failure.stage == Stage::Attach) {
            Some(failure) => failed(failure),
            None => all("Prepared", waiting(record)),
        };
    };
    let pod = &attachment.sandbox.pod;
    let what = subject(record);
    let (coming, going) = match record.plan.made {
        None => ("moved into", "on its way home from"),
        Some(_) => ("made in", "being taken out of"),
    };
    match attachment.step {
        Step::Attaching => all("Attaching", format!("{what} is being {coming} pod {pod}")),
        Step::Returning => all("Returning", format!("{what} is {going} pod {pod}")),
        Step::Attached => match &attachment.lost {
            Some(why) => all("LinkLost", why.clone()),
            None => attached(record, attachment.endpoint),
        },
    }
}

/// What the record is about, for people.
fn subject(record: &InterfaceRecord) -> String {
    match &record.plan.made {
        None => format!("link {:?}", record.plan.host_link),
        Some(Made::Port(port)) => format!("the port of network {:?}", port.network.name),
        Some(Made::SubInterface(upper)) => {
            format!("{} on link {:?}", upper.sub_interface, record.plan.host_link)
        }
    }
}

fn waiting(record: &InterfaceRecord) -> String {
    match record.plan.made {
        None => format!("{} is at home and waits for the pod's sandbox", subject(record)),
        Some(_) => format!("{} is made with the pod's sandbox", subject(record)),
    }
}

fn attached(record: &InterfaceRecord, endpoint: Option<u32>) -> [Finding; 3] {
    let plan = &record.plan;
    let pod = record.attachment.as_ref().map(|attachment| attachment.sandbox.pod.to_string());
    let pod = pod.unwrap_or_default();
    let programs = match (endpoint, plan.isolation) {
        (Some(id), _) => (true, "Attached", format!("the programs of endpoint {id} are on {:?}", plan.name)),
        (None, Isolation::Off) => {
            (false, "IsolationOff", "isolation is off for this interface: it has no programs".to_owned())
        }
        (None, Isolation::Strict | Isolation::BestEffort) => {
            (false, "NoEndpoint", "the interface has no programs".to_owned())
        }
    };
    // Without the programs that strict isolation asks for, an interface is never called ready.
    let protected = programs.0 || plan.isolation == Isolation::Off;
    if plan.lacks_address() {
        let message =
            format!("{} has lost its address by DHCP: it is closed, and down in pod {pod}", subject(record));
        let lost = |type_| Finding { type_, holds: false, reason: "LeaseLost", message: message.clone() };
        let programs =
            Finding { type_: PROGRAMS_ATTACHED, holds: programs.0, reason: programs.1, message: programs.2 };
        return [lost(READY), lost(NETWORK_READY), programs];
    }
    let (ready, ready_reason) = (protected, if protected { "Attached" } else { "NotProtected" });
    [
        Finding {
            type_: READY,
            holds: ready,
            reason: ready_reason,
            message: format!("{} is in pod {pod} as {:?}", subject(record), plan.name),
        },
        Finding {
            type_: NETWORK_READY,
            holds: true,
            reason: "Configured",
            message: format!("{} addresses and {} routes are set", plan.addresses.len(), plan.routes.len()),
        },
        Finding { type_: PROGRAMS_ATTACHED, holds: programs.0, reason: programs.1, message: programs.2 },
    ]
}

fn network_data(record: &InterfaceRecord) -> Option<NetworkDeviceData> {
    let attachment = record.attachment.as_ref().filter(|attachment| attachment.step == Step::Attached)?;
    let mac = record.plan.hardware_addr.or(attachment.home.as_ref().and_then(|home| home.link.mac));
    let mut seen = BTreeSet::new();
    let ips: Vec<String> = record
        .plan
        .addresses
        .iter()
        .map(ToString::to_string)
        .filter(|address| seen.insert(address.clone()))
        .take(IPS)
        .collect();
    Some(NetworkDeviceData {
        interface_name: Some(cut(record.plan.name.clone(), INTERFACE_NAME_BYTES)),
        ips: (!ips.is_empty()).then_some(ips),
        hardware_address: mac.map(|mac| cut(mac.to_string(), HARDWARE_ADDRESS_BYTES)),
    })
}

fn cut(mut text: String, bytes: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes));
    text
}

#[cfg(test)]
mod tests;
