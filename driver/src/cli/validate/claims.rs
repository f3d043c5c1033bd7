//! Classes and claims: their selectors, their configurations, and what a claim's are beside its class's.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{
    DeviceClass, DeviceSelector, DeviceSubRequest, OpaqueDeviceConfiguration, ResourceClaim,
    ResourceClaimSpec, ResourceClaimTemplate,
};

use super::{
    Problem, Severity,
    objects::{Kind, Object},
    pods,
};
use crate::{
    claim::{
        config::{FieldError, InterfaceConfig},
        plan::{doubles, is_for, weaker},
    },
    cluster::standalone::document::typed,
    selector::{Selector, known::nearest},
};

/// The objects of all files, by their names.
pub(super) struct All<'a> {
    driver: &'a str,
    /// Merged configuration of each class for this driver, as far as it can be read.
    classes: BTreeMap<String, InterfaceConfig>,
    /// Kind, namespace and name of claims and templates.
    claims: BTreeSet<(String, String, String)>,
}

impl<'a> All<'a> {
    pub(super) fn of(objects: &[Object], driver: &'a str) -> Self {
        let mut all = Self { driver, classes: BTreeMap::new(), claims: BTreeSet::new() };
        for object in objects {
            let name = object.text("/metadata/name").to_owned();
            match object.kind {
                Kind::DeviceClass => {
                    let mut merged = InterfaceConfig::default();
                    let class = typed::<DeviceClass>(&object.value).ok();
                    for config in class.and_then(|class| class.spec.config).into_iter().flatten() {
                        let ours = config.opaque.filter(|opaque| opaque.driver == driver);
                        let parsed =
                            ours.and_then(|opaque| InterfaceConfig::parse(&opaque.parameters.0).ok());
                        if let Some(config) = parsed {
                            merged.merge(config);
                        }
                    }
                    all.classes.insert(name, merged);
                }
                Kind::ResourceClaim | Kind::ResourceClaimTemplate => {
                    all.claims.insert((object.kind_name(), object.namespace().to_owned(), name));
                }
                _ => {}
            }
        }
        all
    }

    /// What is allowed instead of a claim or template that no file has, if the files have any of its namespace.
    pub(super) fn no_claim(&self, kind: &str, namespace: &str, name: &str) -> Option<String> {
        let beside = || self.claims.iter().filter(|(_, of, _)| of == namespace);
        let known: Vec<_> = beside().filter(|(of, ..)| of == kind).map(|(.., name)| name.as_str()).collect();
        if beside().next().is_none() || known.contains(&name) {
            return None;
        }
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Some(format!("a {kind} of namespace {namespace}; these files have: {known}"))
    }

    /// What is allowed instead of a class that no file has, if the files have classes. The class of the base is everywhere.
    fn no_class(&self, name: &str) -> Option<String> {
        if self.classes.is_empty() || self.classes.contains_key(name) || name == self.driver {
            return None;
        }
        let known: Vec<_> = self.classes.keys().map(String::as_str).collect();
        Some(format!("a DeviceClass; these files have: {}", known.join(", ")))
    }
}

/// What is wrong with an object, beside the others.
pub(super) fn check(object: &Object, all: &All<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    match object.kind {
        Kind::InterfaceConfig => match InterfaceConfig::parse(&object.value) {
            Ok(config) => problems.extend(config.check().into_iter().map(Problem::error)),
            Err(errors) => problems.extend(errors.into_iter().map(Problem::error)),
        },
        Kind::DeviceClass => match typed::<DeviceClass>(&object.value) {
            Ok(class) => check_class(&class, all, &mut problems),
            Err(message) => problems.push(Problem::plain(message)),
        },
        Kind::ResourceClaim => match typed::<ResourceClaim>(&object.value) {
            Ok(claim) => check_claim("spec", &claim.spec, all, &mut problems),
            Err(message) => problems.push(Problem::plain(message)),
        },
        Kind::ResourceClaimTemplate => match typed::<ResourceClaimTemplate>(&object.value) {
            Ok(template) => check_claim("spec.spec", &template.spec.spec, all, &mut problems),
            Err(message) => problems.push(Problem::plain(message)),
        },
        Kind::Pod => problems.extend(pods::check(object, all)),
        Kind::Network | Kind::Other => {}
    }
    problems
}

fn check_class(class: &DeviceClass, all: &All<'_>, problems: &mut Vec<Problem>) {
    selectors("spec", class.spec.selectors.as_deref(), all, problems);
    let mut merged = InterfaceConfig::default();
    for (index, config) in class.spec.config.iter().flatten().enumerate() {
        let opaque = config.opaque.as_ref();
        if let Some(config) = parameters(&format!("spec.config[{index}]"), opaque, all, problems) {
            merged.merge(config);
        }
    }
    // Addresses of a class's routes may be the claim's: only what is wrong without them is.
    let alone = InterfaceConfig { routes: None, ..merged };
    problems.extend(alone.check().into_iter().map(|error| Problem::error(error.under("spec.config"))));
}

fn selectors(path: &str, of: Option<&[DeviceSelector]>, all: &All<'_>, problems: &mut Vec<Problem>) {
    for (index, selector) in of.into_iter().flatten().enumerate() {
        let field = format!("{path}.selectors[{index}].cel.expression");
        match &selector.cel {
            None => {
                problems.push(Problem::error(FieldError::missing(field, "a CEL expression over `device`")));
            }
            Some(cel) => {
                if let Err(wrong) = Selector::check(all.driver, &cel.expression) {
                    let allowed = format!("a condition over a device ({})", wrong.place());
                    problems.push(Problem::error(FieldError::new(field, &cel.expression, allowed)));
                }
            }
        }
    }
}

/// The configuration of an entry, if it is this driver's and can be read.
fn parameters(
    path: &str,
    opaque: Option<&OpaqueDeviceConfiguration>,
    all: &All<'_>,
    problems: &mut Vec<Problem>,
) -> Option<InterfaceConfig> {
    let opaque = opaque?;
    if opaque.driver != all.driver {
        if nearest(&opaque.driver, [all.driver]).is_some() {
            let allowed = format!("probably {}: the configuration of another driver is not read", all.driver);
            let error = FieldError::new(format!("{path}.opaque.driver"), &opaque.driver, allowed);
            problems.push(Problem::new(Severity::Warning, error));
        }
        return None;
    }
    match InterfaceConfig::parse(&opaque.parameters.0) {
        Ok(config) => Some(config),
        Err(errors) => {
            let parent = format!("{path}.opaque.parameters");
            problems.extend(errors.into_iter().map(|error| Problem::error(error.under(&parent))));
            None
        }
    }
}

/// A request or one of its alternatives.
struct Request<'a> {
    /// `main`, or `main/alternative`.
    name: String,
    class: &'a str,
    count: i64,
}

fn check_claim(path: &str, claim: &ResourceClaimSpec, all: &All<'_>, problems: &mut Vec<Problem>) {
    let Some(devices) = &claim.devices else { return };
    let requests = requests(&format!("{path}.devices"), devices, all, problems);
    let mut configs = Vec::new();
    for (index, entry) in devices.config.iter().flatten().enumerate() {
        let at = format!("{path}.devices.config[{index}]");
        let names = entry.requests.clone().unwrap_or_default();
        for (nth, name) in names.iter().enumerate() {
            let known = |request: &Request<'_>| is_for(std::slice::from_ref(name), &request.name);
            if !requests.iter().any(known) {
                let all: Vec<_> = requests.iter().map(|request| request.name.as_str()).collect();
                let allowed = format!("a request of the claim: {}", all.join(", "));
                problems.push(Problem::error(FieldError::new(
                    format!("{at}.requests[{nth}]"),
                    name,
                    allowed,
                )));
            }
        }
        if let Some(config) = parameters(&at, entry.opaque.as_ref(), all, problems) {
            configs.push((at, names, config));
        }
    }
    let mut whole = Vec::new();
    for request in &requests {
        let of_class = all.classes.get(request.class).cloned().unwrap_or_default();
        let mut merged = of_class.clone();
        for (at, _, config) in configs.iter().filter(|(_, names, _)| is_for(names, &request.name)) {
            let parent = format!("{at}.opaque.parameters");
            let weaker = weaker(&of_class, config).into_iter().map(|error| error.under(&parent));
            problems.extend(weaker.map(Problem::error));
            merged.merge(config.clone());
        }
        let errors = merged.check().into_iter();
        problems.extend(errors.map(|mut error| {
            error.field = format!("request {}: {}", request.name, error.field);
            Problem::error(error)
        }));
        // A configuration without requests is also for the addresses of a network's port, which are no interfaces.
        let alone = requests.len() == 1;
        let named = configs.iter().any(|(_, names, _)| !names.is_empty() && is_for(names, &request.name));
        if alone || named {
            let several = usize::try_from(request.count.clamp(1, 2)).unwrap_or(1);
            whole.extend(std::iter::repeat_n((request.name.as_str(), merged), several));
        }
    }
    // Of alternatives, one is allocated.
    whole.retain(|(name, _)| !name.contains('/'));
    let mut found: Vec<_> = doubles(whole.iter().map(|(name, config)| (*name, config)));
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    for (request, config) in &whole {
        let Some(name) = &config.name else { continue };
        if let Some(other) = names.insert(name, request) {
            let allowed = format!("a name that is free in the pod; request {other} has this one");
            found.push(FieldError::new(format!("request {request}: name"), name, allowed));
        }
    }
    problems.extend(found.into_iter().map(Problem::error));
    let mut seen = BTreeSet::new();
    problems.retain(|problem| seen.insert(problem.message.clone()));
}

fn requests<'a>(
    path: &str,
    devices: &'a k8s_openapi::api::resource::v1::DeviceClaim,
    all: &All<'_>,
    problems: &mut Vec<Problem>,
) -> Vec<Request<'a>> {
    let mut found: Vec<Request<'a>> = Vec::new();
    for (index, request) in devices.requests.iter().flatten().enumerate() {
        let at = format!("{path}.requests[{index}]");
        if found.iter().any(|other| other.name.split('/').next() == Some(&request.name)) {
            let error = FieldError::new(format!("{at}.name"), &request.name, "each name once in the claim");
            problems.push(Problem::error(error));
        }
        let mut one =
            |at: String, name: String, class: &'a str, count: Option<i64>, of: Option<&[DeviceSelector]>| {
                if let Some(allowed) = all.no_class(class) {
                    let error = FieldError::new(format!("{at}.deviceClassName"), class, allowed);
                    problems.push(Problem::error(error));
                }
                selectors(&at, of, all, problems);
                found.push(Request { name, class, count: count.unwrap_or(1) });
            };
        match (&request.exactly, request.first_available.as_deref()) {
            (Some(exactly), None) => {
                let of = exactly.selectors.as_deref();
                let at = format!("{at}.exactly");
                one(at, request.name.clone(), &exactly.device_class_name, exactly.count, of);
            }
            (None, Some(alternatives)) => {
                for (nth, alternative) in alternatives.iter().enumerate() {
                    let DeviceSubRequest { name, device_class_name, count, selectors, .. } = alternative;
                    let at = format!("{at}.firstAvailable[{nth}]");
                    let name = format!("{}/{name}", request.name);
                    one(at, name, device_class_name, *count, selectors.as_deref());
                }
            }
            (both, _) => {
                let value = if both.is_some() { "both" } else { "neither" };
                let error = FieldError::new(at, value, "exactly one of exactly and firstAvailable");
                problems.push(Problem::error(error));
            }
        }
    }
    found
}
