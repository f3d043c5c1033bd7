//! The types of a parsed selector: what can never be true or false is refused before it is evaluated.
//!
//! What is not known before an evaluation (attributes of other drivers, elements of mixed lists) passes.

use cel::{
    IdedExpr,
    common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, ListExpr, LiteralValue, MapExpr},
};

use super::{
    functions::{self, Found},
    kind::{Domain, Kind},
    known::{self, ValueKind, hint},
    operators,
    quantity::Quantity,
    version::Version,
};

/// Which devices a selector is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// Links of this driver alone, as in `--publish`, `--share` and the uplink of a Network.
    Links,
    /// Every device of every driver, as in a DeviceClass and a claim.
    All,
}

/// What is wrong, and with which part of the expression.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) at: u64,
    pub(super) message: String,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// A function that only Kubernetes evaluates, and where it is.
    pub(super) of_kubernetes: Option<(u64, String)>,
}

/// Check that an expression gives true or false. `driver` is this driver, whose attributes are known.
pub(super) fn check(expression: &IdedExpr, driver: &str, devices: Devices) -> Result<Checked, Fault> {
    let mut checker = Checker { driver, devices, names: Vec::new(), checked: Checked::default() };
    match checker.kind(expression)? {
        Kind::Bool | Kind::Dyn => Ok(checker.checked),
        other => Err(fault(expression, format!("it gives {other}; allowed: true or false"))),
    }
}

pub(super) fn fault(at: &IdedExpr, message: impl Into<String>) -> Fault {
    Fault { at: at.id, message: message.into() }
}

struct Checker<'a> {
    driver: &'a str,
    devices: Devices,
    /// Variables of macros, the innermost last.
    names: Vec<(String, Kind)>,
    checked: Checked,
}

impl Checker<'_> {
    fn kind(&mut self, expression: &IdedExpr) -> Result<Kind, Fault> {
        match &expression.expr {
            Expr::Literal(literal) => Ok(match literal {
                LiteralValue::Boolean(_) => Kind::Bool,
                LiteralValue::Bytes(_) => Kind::Bytes,
                LiteralValue::Double(_) => Kind::Double,
                LiteralValue::Int(_) => Kind::Int,
                LiteralValue::Null => Kind::Null,
                LiteralValue::String(_) => Kind::String,
                LiteralValue::UInt(_) => Kind::Uint,
            }),
            Expr::Ident(name) => self.name(expression, name),
            Expr::Select(select) => {
                let of = self.kind(&select.operand)?;
                let (of, optional) = opened(of);
                let kind = self.select(expression, of, &select.field)?;
                Ok(match (select.test, optional) {
                    (true, _) => Kind::Bool,
                    (false, true) => Kind::optional(kind),
                    (false, false) => kind,
                })
            }
            Expr::Call(call) => self.call(expression, call),
            Expr::List(list) => self.list(list),
            Expr::Map(map) => self.map(map),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Struct(message) => {
                Err(fault(expression, format!("{} is no type of a selector's values", message.type_name)))
            }
            Expr::Unspecified => Ok(Kind::Dyn),
        }
    }

    fn name(&self, at: &IdedExpr, name: &str) -> Result<Kind, Fault> {
        if let Some((_, kind)) = self.names.iter().rev().find(|(known, _)| known == name) {
            return Ok(kind.clone());
        }
        match name {
            "device" => Ok(Kind::Device),
            "bool" | "int" | "uint" | "double" | "string" | "bytes" | "list" | "map" | "null_type"
            | "type" => Ok(Kind::Type),
            _ => {
                let known = self.names.iter().map(|(name, _)| name.as_str()).chain(["device"]);
                let known: Vec<_> = known.filter(|name| !name.starts_with(['@', '#'])).collect();
                let hint = hint(name, known.iter().copied());
                Err(fault(at, format!("unknown name {name:?}{hint}; allowed: {}", known.join(", "))))
            }
        }
    }

    /// `of.field`, where `of` is no optional value.
    fn select(&self, at: &IdedExpr, of: Kind, field: &str) -> Result<Kind, Fault> {
        match of {
            Kind::Dyn => Ok(Kind::Dyn),
            Kind::Device => match field {
                "driver" => Ok(Kind::String),
                "attributes" => Ok(Kind::Attributes),
                "capacity" => Ok(Kind::Capacities),
                "allowMultipleAllocations" => Ok(Kind::Bool),
                _ => {
                    let (hint, allowed) = (hint(field, known::FIELDS), known::FIELDS.join(", "));
                    Err(fault(at, format!("a device has no field {field:?}{hint}; allowed: {allowed}")))
                }
            },
            Kind::Attributes => self.domain(at, field).map(Kind::AttributesOf),
            Kind::Capacities => self.domain(at, field).map(Kind::CapacitiesOf),
            Kind::AttributesOf(domain) => self.attribute(at, domain, field),
            Kind::CapacitiesOf(domain) => self.capacity(at, domain, field),
            Kind::Map(_, value) => Ok(*value),
            other => Err(fault(at, format!("{other} has no field {field:?}"))),
        }
    }

    /// Which domain a name is.
    fn domain(&self, at: &IdedExpr, name: &str) -> Result<Domain, Fault> {
        if name == self.driver {
            return Ok(Domain::Own);
        }
        if name == known::STANDARD_DOMAIN {
            return Ok(Domain::Standard);
        }
        if let Some((domain, id)) = name.split_once('/') {
            let message =
                format!("{name:?} is no domain; allowed: a domain, then a name, as in [{domain:?}].{id}");
            return Err(fault(at, message));
        }
        let known = [self.driver, known::STANDARD_DOMAIN];
        let hint = hint(name, known);
        if !hint.is_empty() || self.devices == Devices::Links {
            let message = format!("unknown domain {name:?}{hint}; allowed: {}", known.join(", "));
            return Err(fault(at, message));
        }
        Ok(Domain::Other)
    }

    fn attribute(&self, at: &IdedExpr, domain: Domain, name: &str) -> Result<Kind, Fault> {
        let of_networks = if self.devices == Devices::All { known::NETWORK_ATTRIBUTES } else { &[] };
        let known: Vec<&(&str, ValueKind)> = match domain {
            Domain::Own => known::LINK_ATTRIBUTES.iter().chain(of_networks).collect(),
            Domain::Standard => known::STANDARD_ATTRIBUTES.iter().collect(),
            Domain::Other => return Ok(Kind::Dyn),
        };
        if let Some((_, kind)) = known.iter().find(|(known, _)| *known == name) {
            return Ok((*kind).into());
        }
        let names = || known.iter().map(|(name, _)| *name);
        let hint = hint(name, names());
        // Kubernetes may define more of them than this version knows.
        if domain == Domain::Standard && hint.is_empty() && self.devices == Devices::All {
            return Ok(Kind::Dyn);
        }
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        all.dedup();
        let domain = if domain == Domain::Own { self.driver } else { known::STANDARD_DOMAIN };
        Err(fault(at, format!("{domain} has no attribute {name:?}{hint}; allowed: {}", all.join(", "))))
    }

    fn capacity(&self, at: &IdedExpr, domain: Domain, name: &str) -> Result<Kind, Fault> {
        let of_ports = if self.devices == Devices::All { known::PORT_CAPACITIES } else { &[] };
        let known: Vec<&str> = known::LINK_CAPACITIES.iter().chain(of_ports).copied().collect();
        if domain == Domain::Own && !known.contains(&name) {
            let hint = hint(name, known.iter().copied());
            let message =
                format!("{} has no capacity {name:?}{hint}; allowed: {}", self.driver, known.join(", "));
            return Err(fault(at, message));
        }
        Ok(Kind::Quantity)
    }

    /// `of[key]`, where `of` is no optional value.
    pub(super) fn index(&mut self, at: &IdedExpr, of: &Kind, key: &IdedExpr) -> Result<Kind, Fault> {
        let key_kind = self.kind(key)?;
        let takes = |wanted: &Kind| {
            let message = || format!("{of} has {wanted} as key, not {key_kind}");
            if key_kind.compares_to(wanted) && key_kind != Kind::Null {
                Ok(())
            } else {
                Err(fault(key, message()))
            }
        };
        match &of {
            Kind::Dyn => Ok(Kind::Dyn),
            Kind::List(element) => takes(&Kind::Int).map(|()| (**element).clone()),
            Kind::Map(key, value) => takes(key).map(|()| (**value).clone()),
            Kind::Attributes | Kind::Capacities | Kind::AttributesOf(_) | Kind::CapacitiesOf(_) => {
                takes(&Kind::String)?;
                match (text(key), &of) {
                    (Some(name), _) => self.select(key, of.clone(), name),
                    (None, Kind::Attributes) => Ok(Kind::AttributesOf(Domain::Other)),
                    (None, Kind::Capacities) => Ok(Kind::CapacitiesOf(Domain::Other)),
                    (None, Kind::AttributesOf(_)) => Ok(Kind::Dyn),
                    (None, _) => Ok(Kind::Quantity),
                }
            }
            other => Err(fault(at, format!("{other} has no elements"))),
        }
    }

    fn call(&mut self, at: &IdedExpr, call: &CallExpr) -> Result<Kind, Fault> {
        let namespace = call.target.as_deref().and_then(|target| match &target.expr {
            Expr::Ident(name)
                if functions::NAMESPACES.contains(&name.as_str())
                    && !self.names.iter().any(|(known, _)| known == name) =>
            {
                Some(name)
            }
            _ => None,
        });
        let name = match namespace {
            Some(namespace) => format!("{namespace}.{}", call.func_name),
            None => call.func_name.clone(),
        };
        let target = call.target.as_deref().filter(|_| namespace.is_none());
        let receiver = target.map(|target| self.kind(target)).transpose()?;
        if functions::is_of_kubernetes(&name) && call.args.len() < 5 {
            // Arguments of a macro have variables that it makes.
            return Ok(self.of_kubernetes(at, name));
        }
        if receiver.is_none()
            && let Some(kind) = operators::kind(self, at, &name, &call.args)?
        {
            return Ok(kind);
        }
        let mut given: Vec<Kind> = receiver.iter().cloned().collect();
        for argument in &call.args {
            given.push(self.kind(argument)?);
        }
        match functions::find(&name, receiver.is_some(), &given) {
            Found::Here(kind) => literal_argument(&name, target, &call.args).map(|()| kind),
            Found::OfKubernetes => Ok(self.of_kubernetes(at, name)),
            Found::OtherArguments => {
                let given: Vec<_> = given.iter().map(ToString::to_string).collect();
                let given = if given.is_empty() { "no argument".to_owned() } else { given.join(" and ") };
                let form = if receiver.is_some() { "called on and with" } else { "called with" };
                Err(fault(at, format!("{name}() cannot be {form} {given}")))
            }
            Found::Unknown => {
                let hint = hint(&name, functions::names());
                Err(fault(at, format!("unknown function {name}(){hint}")))
            }
        }
    }

    fn of_kubernetes(&mut self, at: &IdedExpr, name: String) -> Kind {
        self.checked.of_kubernetes.get_or_insert((at.id, name));
        Kind::Dyn
    }

    fn list(&mut self, list: &ListExpr) -> Result<Kind, Fault> {
        let mut element: Option<Kind> = None;
        for (index, item) in list.elements.iter().enumerate() {
            let mut kind = self.kind(item)?;
            if list.optional_indices.contains(&index) {
                kind = opened(kind).0;
            }
            element = Some(match element {
                None => kind,
                Some(before) => before.either(kind).unwrap_or(Kind::Dyn),
            });
        }
        Ok(Kind::list(element.unwrap_or(Kind::Dyn)))
    }

    fn map(&mut self, map: &MapExpr) -> Result<Kind, Fault> {
        let (mut keys, mut values): (Option<Kind>, Option<Kind>) = (None, None);
        for entry in &map.entries {
            let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
            for (all, item) in [(&mut keys, &entry.key), (&mut values, &entry.value)] {
                let kind = self.kind(item)?;
                *all = Some(match all.take() {
                    None => kind,
                    Some(before) => before.either(kind).unwrap_or(Kind::Dyn),
                });
            }
        }
        Ok(Kind::Map(Box::new(keys.unwrap_or(Kind::Dyn)), Box::new(values.unwrap_or(Kind::Dyn))))
    }

    /// What `all()`, `exists()`, `map()`, `filter()` and `cel.bind()` stand for.
    fn comprehension(&mut self, of: &ComprehensionExpr) -> Result<Kind, Fault> {
        let (first, second) = match self.kind(&of.iter_range)? {
            Kind::Dyn => (Kind::Dyn, Kind::Dyn),
            Kind::List(element) if of.iter_var2.is_some() => (Kind::Int, *element),
            Kind::List(element) => (*element, Kind::Dyn),
            Kind::Map(key, value) => (*key, *value),
            Kind::Attributes => (Kind::String, Kind::AttributesOf(Domain::Other)),
            Kind::Capacities => (Kind::String, Kind::CapacitiesOf(Domain::Other)),
            Kind::AttributesOf(_) => (Kind::String, Kind::Dyn),
            Kind::CapacitiesOf(_) => (Kind::String, Kind::Quantity),
            other => return Err(fault(&of.iter_range, format!("{other} has no elements to go through"))),
        };
        let init = self.kind(&of.accu_init)?;
        let outer = self.names.len();
        self.names.push((of.accu_var.clone(), init.clone()));
        self.names.push((of.iter_var.clone(), first));
        self.names.extend(of.iter_var2.clone().map(|name| (name, second)));
        self.kind(&of.loop_cond)?;
        let step = self.kind(&of.loop_step)?;
        self.names.truncate(outer);
        // A list that is filled step by step begins without a type.
        let kind = if init == Kind::list(Kind::Dyn) { step } else { init };
        self.names.push((of.accu_var.clone(), kind));
        let result = self.kind(&of.result);
        self.names.truncate(outer);
        result
    }
}

impl operators::Kinds for Checker<'_> {
    fn kind_of(&mut self, expression: &IdedExpr) -> Result<Kind, Fault> {
        self.kind(expression)
    }

    fn selected(&mut self, at: &IdedExpr, of: Kind, field: &str) -> Result<Kind, Fault> {
        self.select(at, of, field)
    }

    fn indexed(&mut self, at: &IdedExpr, of: Kind, key: &IdedExpr) -> Result<Kind, Fault> {
        self.index(at, &of, key)
    }
}

/// What an optional value has inside, and whether it is one.
pub(super) fn opened(kind: Kind) -> (Kind, bool) {
    match kind {
        Kind::Optional(inside) => (*inside, true),
        other => (other, false),
    }
}

/// The text of a string that is written out.
pub(super) fn text(expression: &IdedExpr) -> Option<&str> {
    match &expression.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

/// What is written out as an argument can be read now: `quantity("10X")` fails on every device.
fn literal_argument(name: &str, target: Option<&IdedExpr>, arguments: &[IdedExpr]) -> Result<(), Fault> {
    let at = match (name, target) {
        ("matches", None) => arguments.get(1),
        _ => arguments.first(),
    };
    let Some((at, text)) = at.and_then(|at| Some((at, text(at)?))) else { return Ok(()) };
    let wrong = match name {
        "quantity" => text.parse::<Quantity>().err(),
        "semver" => text.parse::<Version>().err(),
        _ => None,
    };
    wrong.map_or(Ok(()), |message| Err(fault(at, message)))
}
