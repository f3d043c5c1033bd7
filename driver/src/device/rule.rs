//! Which devices are published: a CEL expression over attributes, as in a DeviceClass.

use std::fmt;

use k8s_openapi::api::resource::v1::Device as ApiDevice;

use super::{Device, Inventory, attributes};
use crate::selector::{Devices, NotCel, Selector, SelectorError};

/// The clauses of the default rule, each with the reason that a device it turns away is given. `DRIVER` stands
/// for the driver's name.
///
/// Published are hardware links, and VLAN, macvlan, ipvlan and dummy links that nothing else uses. Everything
/// else (veth, bridges, tunnels, tun, …) was made by a container runtime, a CNI plugin or a hypervisor.
const DEFAULT_CLAUSES: [(&str, &str); 4] = [
    (
        r#"device.attributes["DRIVER"].kind in ["physical", "vlan", "macvlan", "ipvlan", "dummy", "ipoib"]"#,
        "the default rule publishes hardware, vlan, macvlan, ipvlan, dummy and ipoib links only",
    ),
    (r#"!("master" in device.attributes["DRIVER"])"#, "it is enslaved to another link"),
    (r#"device.attributes["DRIVER"].upperLinks == 0"#, "other links are stacked on it"),
    (
        r#"!(device.attributes["DRIVER"].ifName in ["kube-ipvs0", "nodelocaldns"])"#,
        "it belongs to the node's service network",
    ),
];

/// Why a device is not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The loopback link can never leave its namespace.
    #[error("loopback")]
    Loopback,
    /// Without it the node may lose its own connection.
    #[error("the node's default route uses it (--allow-default-route publishes it all the same)")]
    DefaultRoute,
    /// The rule is false.
    #[error("{0}")]
    NotSelected(String),
    /// The rule cannot be evaluated for this device; the scheduler, too, takes such a device as not selected.
    #[error("the rule cannot be evaluated: {0}")]
    Error(String),
}

#[derive(Debug)]
struct Clause {
    selector: Selector,
    reason: String,
}

/// A compiled selection rule.
#[derive(Debug)]
pub struct Rule {
    driver: String,
    clauses: Vec<Clause>,
    text: String,
    allow_default_route: bool,
    /// Which devices may be allocated several times: as it is written, and compiled.
    share: Option<(String, Selector)>,
}

impl Rule {
    /// The rule `expression`, or the default one.
    pub fn choose(driver: &str, expression: Option<&str>, allow_default_route: bool) -> Result<Self, NotCel> {
        match expression {
            Some(expression) => Self::new(driver, expression, allow_default_route),
            None => Self::standard(driver, allow_default_route),
        }
    }

    /// The rule `expression` (`--publish`), in place of the default one.
    ///
    /// It sees what a DeviceClass sees ([`crate::selector`]), but that no device is shared yet.
    pub fn new(driver: &str, expression: &str, allow_default_route: bool) -> Result<Self, NotCel> {
        let reason = format!("the rule {expression:?} is false");
        let clauses =
            vec![Clause { selector: Selector::compile(driver, Devices::Links, expression)?, reason }];
        Ok(Self::of(driver, clauses, expression.to_owned(), allow_default_route))
    }

    /// The default rule.
    pub fn standard(driver: &str, allow_default_route: bool) -> Result<Self, NotCel> {
        let clauses = DEFAULT_CLAUSES
            .iter()
            .map(|(text, reason)| {
                let text = text.replace("DRIVER", driver);
                Ok(Clause {
                    selector: Selector::compile(driver, Devices::Links, &text)?,
                    reason: (*reason).to_owned(),
                })
            })
            .collect::<Result<_, NotCel>>()?;
        Ok(Self::of(driver, clauses, default_expression(driver), allow_default_route))
    }

    fn of(driver: &str, clauses: Vec<Clause>, text: String, allow_default_route: bool) -> Self {
        Self { driver: driver.to_owned(), clauses, text, allow_default_route, share: None }
    }

    /// The same rule, with the expression (`--share`) that says which of the devices may be allocated several times.
    pub fn sharing(self, expression: Option<&str>) -> Result<Self, NotCel> {
        let compile =
            |text: &str| Ok((text.to_owned(), Selector::compile(&self.driver, Devices::Links, text)?));
        let share = expression.map(compile).transpose()?;
        Ok(Self { share, ..self })
    }

    /// Whether the device may be allocated several times. One of which that cannot be told may not.
    fn shares(&self, device: &Device) -> bool {
        let Some((_, share)) = &self.share else { return false };
        share.matches(&self.driver, &unshared(device)).unwrap_or(false)
    }

    /// Name of the driver, domain of the attributes.
    #[must_use]
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// The expression that says which devices may be allocated several times.
    #[must_use]
    pub fn share_text(&self) -> Option<&str> {
        self.share.as_ref().map(|(text, _)| text.as_str())
    }

    /// Whether the link of the default route may be published.
    #[must_use]
    pub fn allows_default_route(&self) -> bool {
        self.allow_default_route
    }

    /// Whether the device is published.
    pub fn check(&self, device: &Device) -> Result<(), Reason> {
        if device.loopback {
            return Err(Reason::Loopback);
        }
        if device.default_route && !self.allow_default_route {
            return Err(Reason::DefaultRoute);
        }
        let published = unshared(device);
        for clause in &self.clauses {
            match clause.selector.matches(&self.driver, &published) {
                Ok(true) => {}
                Ok(false) => return Err(Reason::NotSelected(clause.reason.clone())),
                Err(SelectorError::Evaluate { message, .. }) => return Err(Reason::Error(message)),
                Err(error @ SelectorError::Parse(_)) => return Err(Reason::Error(error.to_string())),
            }
        }
        Ok(())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The default rule as one expression, for documentation and as a start for an own one.
#[must_use]
pub fn default_expression(driver: &str) -> String {
    DEFAULT_CLAUSES.map(|(text, _)| text.replace("DRIVER", driver)).join(" &&\n")
}

/// Every device of the inventory with the decision on it.
#[must_use]
pub fn decide(inventory: &Inventory, rule: &Rule) -> Vec<(Device, Result<(), Reason>)> {
    let decided =
        |device: &Device| (Device { shared: rule.shares(device), ..device.clone() }, rule.check(device));
    inventory.devices.values().map(decided).collect()
}

/// The device as it is published when only one claim may have it: whether several may is decided from this.
fn unshared(device: &Device) -> ApiDevice {
    attributes::api_device(&Device { shared: false, ..device.clone() })
}

#[cfg(test)]
#[path = "rule_tests.rs"]
mod tests;
