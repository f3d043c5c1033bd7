//! What a claim asks for, request by request, and which published devices fit.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::{
    api::resource::v1::{
        CapacityRequirements, DeviceSelector, DeviceSubRequest, DeviceTaint, DeviceToleration,
        ExactDeviceRequest,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{AllocateError, Candidate, Question, capacity};
use crate::selector::{Devices, Selector};

/// Most devices a claim may have (`AllocationResultsMaxSize`).
pub(super) const MAX_DEVICES: usize = 32;

/// How many devices are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// That many.
    Exactly(usize),
    /// Each one that fits; at least one.
    All,
}

impl fmt::Display for Wants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(count) => count.fmt(f),
            Self::All => f.write_str("all"),
        }
    }
}

/// One way to satisfy a request.
#[derive(Debug)]
pub(super) struct Alternative<'a> {
    /// `request`, or `request/subrequest`.
    pub(super) name: String,
    /// The request's own name.
    pub(super) request: &'a str,
    /// Class.
    pub(super) class: String,
    /// How many.
    pub(super) wants: Wants,
    /// Devices in use may be given too, and stay free.
    pub(super) admin: bool,
    /// Copied into the result.
    pub(super) tolerations: Option<Vec<DeviceToleration>>,
    /// What is wanted of a device's capacities.
    pub(super) capacity: BTreeMap<String, Quantity>,
    /// Candidates that pass every selector and have the capacities, by index.
    pub(super) eligible: Vec<usize>,
}

impl Alternative<'_> {
    /// Whether a configuration or constraint for `request` means this one: a request means all of its
    /// sub-requests.
    pub(super) fn is_meant_by(&self, request: &str) -> bool {
        request == self.request || request == self.name
    }
}

/// The common facts of `exactly` and of an entry of `firstAvailable`.
struct Ask<'a> {
    field: String,
    name: String,
    request: &'a str,
    class: &'a str,
    mode: Option<&'a str>,
    count: Option<i64>,
    admin: bool,
    selectors: Option<&'a Vec<DeviceSelector>>,
    tolerations: Option<&'a Vec<DeviceToleration>>,
    capacity: Option<&'a CapacityRequirements>,
}

/// Every request with its alternatives, best first.
pub(super) fn expand<'a>(
    question: &Question<'a>,
    candidates: &[Candidate<'_>],
) -> Result<Vec<Vec<Alternative<'a>>>, AllocateError> {
    let devices = question.claim.spec.devices.as_ref();
    let requests = devices.and_then(|devices| devices.requests.as_ref()).into_iter().flatten();
    requests
        .enumerate()
        .map(|(index, request)| {
            let field = format!("spec.devices.requests[{index}]");
            let exact = request.exactly.iter().map(|exact| of_exact(&field, &request.name, exact));
            let subs = request.first_available.iter().flatten().enumerate();
            let subs = subs
                .map(|(index, sub)| of_sub(format!("{field}.firstAvailable[{index}]"), &request.name, sub));
            exact.chain(subs).map(|ask| alternative(question, candidates, ask)).collect()
        })
        .collect()
}

fn of_exact<'a>(field: &str, name: &'a str, exact: &'a ExactDeviceRequest) -> Ask<'a> {
    Ask {
        field: format!("{field}.exactly"),
        name: name.to_owned(),
        request: name,
        class: &exact.device_class_name,
        mode: exact.allocation_mode.as_deref(),
        count: exact.count,
        admin: exact.admin_access.unwrap_or(false),
        selectors: exact.selectors.as_ref(),
        tolerations: exact.tolerations.as_ref(),
        capacity: exact.capacity.as_ref(),
    }
}

fn of_sub<'a>(field: String, name: &'a str, sub: &'a DeviceSubRequest) -> Ask<'a> {
    Ask {
        field,
        name: format!("{name}/{}", sub.name),
        request: name,
        class: &sub.device_class_name,
        mode: sub.allocation_mode.as_deref(),
        count: sub.count,
        admin: false,
        selectors: sub.selectors.as_ref(),
        tolerations: sub.tolerations.as_ref(),
        capacity: sub.capacity.as_ref(),
    }
}

fn alternative<'a>(
    question: &Question<'a>,
    candidates: &[Candidate<'_>],
    ask: Ask<'a>,
) -> Result<Alternative<'a>, AllocateError> {
    let field = |name: &str| format!("{}.{name}", ask.field);
    let invalid = |name: &str, message: String| AllocateError::Invalid { field: field(name), message };
    let capacity = ask.capacity.and_then(|capacity| capacity.requests.clone()).unwrap_or_default();
    for (name, wanted) in &capacity {
        capacity::parse(wanted).map_err(|message| invalid(&format!("capacity.requests[{name}]"), message))?;
    }
    let wants = wants(&ask).map_err(|(name, message)| invalid(name, message))?;
    let class = question.classes.get(ask.class).ok_or_else(|| AllocateError::NoClass {
        field: field("deviceClassName"),
        class: ask.class.to_owned(),
    })?;
    let class_field = format!("DeviceClass {}: spec.selectors", ask.class);
    let mut selectors = compile(question.driver, &class_field, class.spec.selectors.as_ref())?;
    selectors.extend(compile(question.driver, &field("selectors"), ask.selectors)?);
    let mut eligible = Vec::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let device = candidate.device;
        // Shared counters are not kept here, so a device that draws on one is never free to give.
        let plain = device.consumes_counters.as_ref().is_none_or(Vec::is_empty);
        let enough = capacity::consumed(device, &capacity).is_some();
        if !plain || !enough || !tolerated(device.taints.as_deref(), ask.tolerations.map(Vec::as_slice)) {
            continue;
        }
        let mut selected = true;
        for (field, selector) in &selectors {
            let matches = selector.matches(question.driver, device);
            selected = matches.map_err(|source| AllocateError::Selector { field: field.clone(), source })?;
            if !selected {
                break;
            }
        }
        if selected {
            eligible.push(index);
        }
    }
    Ok(Alternative {
        name: ask.name,
        request: ask.request,
        class: ask.class.to_owned(),
        wants,
        admin: ask.admin,
        tolerations: ask.tolerations.cloned(),
        capacity,
        eligible,
    })
}

fn wants(ask: &Ask<'_>) -> Result<Wants, (&'static str, String)> {
    match ask.mode {
        None | Some("ExactCount") => {
            let count = ask.count.unwrap_or(1);
            match usize::try_from(count) {
                Ok(count) if (1..=MAX_DEVICES).contains(&count) => Ok(Wants::Exactly(count)),
                _ => Err(("count", format!("{count} is not allowed; allowed: 1 to {MAX_DEVICES}"))),
            }
        }
        Some("All") => match ask.count {
            None => Ok(Wants::All),
            Some(count) => Err(("count", format!("{count} is not allowed with allocationMode All"))),
        },
        Some(mode) => Err(("allocationMode", format!("{mode:?} is not allowed; allowed: ExactCount, All"))),
    }
}

fn compile(
    driver: &str,
    field: &str,
    selectors: Option<&Vec<DeviceSelector>>,
) -> Result<Vec<(String, Selector)>, AllocateError> {
    let selectors = selectors.into_iter().flatten().enumerate();
    selectors
        .map(|(index, selector)| {
            let field = format!("{field}[{index}].cel.expression");
            let Some(cel) = &selector.cel else {
                return Err(AllocateError::Invalid { field, message: "missing".to_owned() });
            };
            match Selector::compile(driver, Devices::All, &cel.expression) {
                Ok(selector) => Ok((field, selector)),
                Err(source) => Err(AllocateError::Selector { field, source: source.into() }),
            }
        })
        .collect()
}

/// Taints that keep claims away (`NoSchedule`, `NoExecute`) need a toleration; others (`None`) do not.
fn tolerated(taints: Option<&[DeviceTaint]>, tolerations: Option<&[DeviceToleration]>) -> bool {
    let tolerates = |taint: &DeviceTaint, toleration: &DeviceToleration| {
        let effect = toleration.effect.as_deref().is_none_or(|effect| effect == taint.effect);
        let any_key = toleration.key.as_deref().is_none_or(str::is_empty);
        let exists = toleration.operator.as_deref() == Some("Exists");
        let key = toleration.key.as_deref() == Some(&taint.key);
        let value =
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
        effect && if any_key { exists } else { key && (exists || value) }
    };
    taints
        .unwrap_or_default()
        .iter()
        .filter(|taint| taint.effect.starts_with("No") && taint.effect != "None")
        .all(|taint| tolerations.unwrap_or_default().iter().any(|toleration| tolerates(taint, toleration)))
}
