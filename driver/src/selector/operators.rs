//! The types that operators take and give.

use cel::{IdedExpr, common::ast::operators as op};

use super::{
    check::{Fault, fault, opened, text},
    kind::Kind,
};

/// Finds the types of parts of an expression.
pub(super) trait Kinds {
    /// The type of a part.
    fn kind_of(&mut self, expression: &IdedExpr) -> Result<Kind, Fault>;
    /// The type of a field.
    fn selected(&mut self, at: &IdedExpr, of: Kind, field: &str) -> Result<Kind, Fault>;
    /// The type of an element.
    fn indexed(&mut self, at: &IdedExpr, of: Kind, key: &IdedExpr) -> Result<Kind, Fault>;
}

/// The type that an operator gives; `None` if `name` is none.
pub(super) fn kind(
    kinds: &mut impl Kinds,
    at: &IdedExpr,
    name: &str,
    arguments: &[IdedExpr],
) -> Result<Option<Kind>, Fault> {
    let kind = match (name, arguments) {
        (op::LOGICAL_NOT, [one]) => condition(kinds, one)?,
        (op::LOGICAL_AND | op::LOGICAL_OR, [one, other]) => {
            condition(kinds, one)?;
            condition(kinds, other)?
        }
        (op::CONDITIONAL, [asked, yes, no]) => {
            condition(kinds, asked)?;
            let (yes, no) = (kinds.kind_of(yes)?, kinds.kind_of(no)?);
            let message = || format!("one side of ?: is {yes}, the other {no}; allowed: one type");
            yes.clone().either(no.clone()).ok_or_else(|| fault(at, message()))?
        }
        (op::EQUALS | op::NOT_EQUALS, [one, other]) => {
            let (one, other) = (kinds.kind_of(one)?, kinds.kind_of(other)?);
            if !one.compares_to(&other) {
                return Err(fault(at, format!("{one} is never equal to {other}")));
            }
            Kind::Bool
        }
        (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, [one, other]) => {
            ordered(at, &kinds.kind_of(one)?, &kinds.kind_of(other)?)?
        }
        (op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO, [one, other]) => {
            computed(at, name, kinds.kind_of(one)?, &kinds.kind_of(other)?)?
        }
        (op::NEGATE, [one]) => match kinds.kind_of(one)? {
            kind @ (Kind::Dyn | Kind::Int | Kind::Double) => kind,
            other => return Err(fault(at, format!("{other} has no negative"))),
        },
        (op::IN, [element, container]) => contained(kinds, at, element, container)?,
        (op::INDEX, [of, key]) => {
            let (of, optional) = opened(kinds.kind_of(of)?);
            let kind = kinds.indexed(at, of, key)?;
            if optional { Kind::optional(kind) } else { kind }
        }
        (op::OPT_INDEX, [of, key]) => {
            let of = opened(kinds.kind_of(of)?).0;
            Kind::optional(kinds.indexed(at, of, key)?)
        }
        (op::OPT_SELECT, [of, field]) => {
            let of = opened(kinds.kind_of(of)?).0;
            let field = text(field).ok_or_else(|| fault(field, "the name of a field is expected"))?;
            Kind::optional(kinds.selected(at, of, field)?)
        }
        _ => return Ok(None),
    };
    Ok(Some(kind))
}

fn condition(kinds: &mut impl Kinds, of: &IdedExpr) -> Result<Kind, Fault> {
    match kinds.kind_of(of)? {
        Kind::Bool | Kind::Dyn => Ok(Kind::Bool),
        other => Err(fault(of, format!("{other} is no condition; allowed: true or false"))),
    }
}

fn ordered(at: &IdedExpr, one: &Kind, other: &Kind) -> Result<Kind, Fault> {
    let orders =
        |kind: &Kind| kind.is_number() || matches!(kind, Kind::Dyn | Kind::Bool | Kind::String | Kind::Bytes);
    if let Kind::Quantity | Kind::Semver = one {
        let message = format!("{one} has no order by <; allowed: isLessThan(), isGreaterThan(), compareTo()");
        return Err(fault(at, message));
    }
    match (orders(one), orders(other)) {
        (true, true) if one.compares_to(other) => Ok(Kind::Bool),
        _ => Err(fault(at, format!("{one} has no order beside {other}"))),
    }
}

fn computed(at: &IdedExpr, operator: &str, one: Kind, other: &Kind) -> Result<Kind, Fault> {
    let joins = matches!((&one, other), (Kind::String, Kind::String) | (Kind::Bytes, Kind::Bytes));
    match (&one, other) {
        (Kind::List(a), Kind::List(b)) if operator == op::ADD => {
            // An empty list has no type of its own.
            let element = match (&**a, &**b) {
                (Kind::Dyn, kind) | (kind, Kind::Dyn) => kind.clone(),
                (a, b) => a.clone().either(b.clone()).unwrap_or(Kind::Dyn),
            };
            Ok(Kind::list(element))
        }
        (Kind::Dyn, _) | (_, Kind::Dyn) => Ok(Kind::Dyn),
        _ if one == *other && one.is_number() && !(operator == op::MODULO && one == Kind::Double) => Ok(one),
        _ if joins && operator == op::ADD => Ok(one),
        _ => {
            let sign = operator.trim_matches('_');
            Err(fault(at, format!("{one} {sign} {other} cannot be computed")))
        }
    }
}

/// `element in container`.
fn contained(
    kinds: &mut impl Kinds,
    at: &IdedExpr,
    element: &IdedExpr,
    container: &IdedExpr,
) -> Result<Kind, Fault> {
    let (kind, of) = (kinds.kind_of(element)?, kinds.kind_of(container)?);
    let elements = match &of {
        Kind::Dyn => Kind::Dyn,
        Kind::List(element) => (**element).clone(),
        Kind::Map(key, _) => (**key).clone(),
        Kind::Attributes | Kind::Capacities | Kind::AttributesOf(_) | Kind::CapacitiesOf(_) => {
            if let Some(name) = text(element) {
                kinds.selected(element, of.clone(), name)?;
            }
            Kind::String
        }
        other => {
            return Err(fault(at, format!("{other} has no elements; allowed after `in`: a list or a map")));
        }
    };
    if kind.compares_to(&elements) {
        Ok(Kind::Bool)
    } else {
        Err(fault(at, format!("{kind} is never in {of} of {}", plural(&elements))))
    }
}

fn plural(kind: &Kind) -> String {
    let name = kind.to_string();
    let name = name.strip_prefix("a ").or_else(|| name.strip_prefix("an ")).unwrap_or(&name);
    format!("{name}s")
}
