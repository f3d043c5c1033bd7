//! Which devices are published: a CEL expression over attributes, as in a DeviceClass.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use cel::{Context, Program, Value as CelValue, extractors::This, objects::Map};

use super::{
    Device, Inventory,
    attributes::{self, STANDARD_DOMAIN, Value},
};

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

/// A rule that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("selection rule {expression:?} is not valid CEL at line {line}, column {column}: {message}")]
pub struct RuleError {
    /// The expression as given.
    pub expression: String,
    /// Line, from 1.
    pub line: isize,
    /// Column, from 1.
    pub column: isize,
    /// What the parser expected.
    pub message: String,
}

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
    program: Program,
    reason: String,
}

/// A compiled selection rule.
pub struct Rule {
    driver: String,
    clauses: Vec<Clause>,
    text: String,
    allow_default_route: bool,
    /// Which devices may be allocated several times.
    share: Option<Program>,
    /// The functions; a device's variable goes to a scope of its own.
    functions: Context<'static, 'static>,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule")
            .field("driver", &self.driver)
            .field("text", &self.text)
            .field("allow_default_route", &self.allow_default_route)
            .finish_non_exhaustive()
    }
}

impl Rule {
    /// The rule `expression`, or the default one.
    pub fn choose(
        driver: &str,
        expression: Option<&str>,
        allow_default_route: bool,
    ) -> Result<Self, RuleError> {
        match expression {
            Some(expression) => Self::new(driver, expression, allow_default_route),
            None => Self::standard(driver, allow_default_route),
        }
    }

    /// The rule `expression` (`--publish`), in place of the default one.
    ///
    /// Variables: `device.driver`, `device.attributes[DOMAIN].NAME`, `device.capacity[DOMAIN].NAME`, where a
    /// capacity compares as a quantity: `device.capacity["netferry.dev"].bandwidth
    /// .compareTo(quantity("10G")) >= 0`.
    pub fn new(driver: &str, expression: &str, allow_default_route: bool) -> Result<Self, RuleError> {
        let reason = format!("the rule {expression:?} is false");
        let clauses = vec![Clause { program: compile(expression)?, reason }];
        Ok(Self::of(driver, clauses, expression.to_owned(), allow_default_route))
    }

    /// The default rule.
    pub fn standard(driver: &str, allow_default_route: bool) -> Result<Self, RuleError> {
        let clauses = DEFAULT_CLAUSES
            .iter()
            .map(|(text, reason)| {
                let text = text.replace("DRIVER", driver);
                Ok(Clause { program: compile(&text)?, reason: (*reason).to_owned() })
            })
            .collect::<Result<_, RuleError>>()?;
        Ok(Self::of(driver, clauses, default_expression(driver), allow_default_route))
    }

    fn of(driver: &str, clauses: Vec<Clause>, text: String, allow_default_route: bool) -> Self {
        Self {
            driver: driver.to_owned(),
            clauses,
            text,
            allow_default_route,
            share: None,
            functions: functions(),
        }
    }

    /// The same rule, with the expression (`--share`) that says which of the devices may be allocated several times.
    pub fn sharing(self, expression: Option<&str>) -> Result<Self, RuleError> {
        let share = expression.map(compile).transpose()?;
        Ok(Self { share, ..self })
    }

    /// Whether the device may be allocated several times. One of which that cannot be told may not.
    fn shares(&self, device: &Device) -> bool {
        let Some(share) = &self.share else { return false };
        let mut context = self.functions.new_inner_scope();
        context.add_variable_from_value("device", variable(device, &self.driver));
        matches!(share.execute(&context), Ok(CelValue::Bool(true)))
    }

    /// Name of the driver, domain of the attributes.
    #[must_use]
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// Whether the device is published.
    pub fn check(&self, device: &Device) -> Result<(), Reason> {
        if device.loopback {
            return Err(Reason::Loopback);
        }
        if device.default_route && !self.allow_default_route {
            return Err(Reason::DefaultRoute);
        }
        let mut context = self.functions.new_inner_scope();
        context.add_variable_from_value("device", variable(device, &self.driver));
        for clause in &self.clauses {
            match clause.program.execute(&context) {
                Ok(CelValue::Bool(true)) => {}
                Ok(CelValue::Bool(false)) => return Err(Reason::NotSelected(clause.reason.clone())),
                Ok(other) => {
                    return Err(Reason::Error(format!("it gives {:?}, not true or false", other.type_of())));
                }
                Err(error) => return Err(Reason::Error(error.to_string())),
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

fn compile(expression: &str) -> Result<Program, RuleError> {
    Program::compile(expression).map_err(|errors| {
        let first = errors.errors.first();
        RuleError {
            expression: expression.to_owned(),
            line: first.map_or(1, |error| error.pos.0),
            // The parser counts columns from 0.
            column: first.map_or(1, |error| error.pos.1 + 1),
            message: first.map_or_else(|| "unknown error".to_owned(), |error| error.msg.clone()),
        }
    })
}

/// `device` as the scheduler presents it (`k8s.io/dynamic-resource-allocation/cel`).
fn variable(device: &Device, driver: &str) -> HashMap<&'static str, CelValue> {
    let mut domains = BTreeMap::from([
        (driver.to_owned(), HashMap::<String, CelValue>::new()),
        // A domain without attributes is an empty map there, not an error.
        (STANDARD_DOMAIN.to_owned(), HashMap::new()),
    ]);
    for (name, value) in attributes::attributes(device) {
        let (domain, name) = name.split_once('/').unwrap_or((driver, &name));
        let value = match value {
            Value::String(text) => text.into(),
            Value::Int(number) => number.into(),
            Value::Bool(flag) => flag.into(),
        };
        domains.entry(domain.to_owned()).or_default().insert(name.to_owned(), value);
    }
    let capacities: HashMap<String, CelValue> = attributes::capacities(device)
        .into_iter()
        .map(|(name, value)| (name, i64::try_from(value).unwrap_or(i64::MAX).into()))
        .collect();
    let domains: HashMap<String, Map> =
        domains.into_iter().map(|(domain, names)| (domain, Map::from(names))).collect();
    HashMap::from([
        ("driver", driver.into()),
        ("attributes", map(domains)),
        ("capacity", map(HashMap::from([(driver.to_owned(), Map::from(capacities))]))),
        ("allowMultipleAllocations", false.into()),
    ])
}

/// CEL's standard library, and quantities, which are integers here: the comparisons of the scheduler's
/// quantity type are methods of integers.
fn functions() -> Context<'static, 'static> {
    let mut context = Context::default();
    for result in [
        context.add_function("quantity", quantity),
        context.add_function("compareTo", |This(a): This<i64>, b: i64| a.cmp(&b) as i64),
        context.add_function("isGreaterThan", |This(a): This<i64>, b: i64| a > b),
        context.add_function("isLessThan", |This(a): This<i64>, b: i64| a < b),
    ] {
        // It fails only for a name that the standard library has.
        debug_assert!(result.is_ok(), "{result:?}");
    }
    context
}

fn map(entries: HashMap<String, Map>) -> CelValue {
    entries.into_iter().map(|(key, value)| (key, CelValue::Map(value))).collect::<HashMap<_, _>>().into()
}

/// A whole quantity, such as `10G` or `512Mi`, in its base unit.
#[allow(clippy::needless_pass_by_value, reason = "the signature CEL functions have")]
fn quantity(text: std::sync::Arc<String>) -> Result<i64, cel::ExecutionError> {
    const UNITS: [(&str, i64); 13] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("Ei", 1 << 60),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("E", 1_000_000_000_000_000_000),
        ("", 1),
    ];
    let (digits, unit) = UNITS
        .iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (digits, *unit)))
        .unwrap_or((&text, 1));
    digits.parse::<i64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(|| {
        cel::ExecutionError::function_error("quantity", format!("{text:?} is not a whole quantity"))
    })
}

#[cfg(test)]
#[path = "rule_tests.rs"]
mod tests;
