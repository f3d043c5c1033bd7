//! The types of CEL expressions, as far as the check of selectors tells them apart.

use std::fmt;

/// Whose attributes a map has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Domain {
    /// This driver's, all of whose names are known.
    Own,
    /// Those that Kubernetes defines, some of which are known.
    Standard,
    /// Another driver's, of which nothing is known.
    Other,
}

/// The type of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Not known before the expression is evaluated.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    /// A type's name, such as `int`.
    Type,
    Quantity,
    Semver,
    List(Box<Self>),
    Map(Box<Self>, Box<Self>),
    Optional(Box<Self>),
    /// The variable `device`.
    Device,
    /// `device.attributes`.
    Attributes,
    /// `device.capacity`.
    Capacities,
    /// `device.attributes["domain"]`.
    AttributesOf(Domain),
    /// `device.capacity["domain"]`.
    CapacitiesOf(Domain),
}

impl Kind {
    pub(super) fn list(of: Self) -> Self {
        Self::List(Box::new(of))
    }

    pub(super) fn optional(of: Self) -> Self {
        Self::Optional(Box::new(of))
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    /// Whether values of both types may be compared with `==`. Kubernetes compares numbers of all types.
    pub(super) fn compares_to(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dyn | Self::Null, _) | (_, Self::Dyn | Self::Null) => true,
            (one, other) if one.is_number() && other.is_number() => true,
            (Self::List(one), Self::List(other)) | (Self::Optional(one), Self::Optional(other)) => {
                one.compares_to(other)
            }
            (Self::Map(..), Self::Map(..)) => true,
            (one, other) => one == other,
        }
    }

    /// The type of a value that has either type; `None` where CEL allows only one.
    pub(super) fn either(self, other: Self) -> Option<Self> {
        match (self, other) {
            (one, other) if one == other => Some(one),
            (Self::Dyn, _) | (_, Self::Dyn) => Some(Self::Dyn),
            (Self::Null, one) | (one, Self::Null) => Some(one),
            (Self::List(one), Self::List(other)) => one.either(*other).map(Self::list),
            (Self::Optional(one), Self::Optional(other)) => one.either(*other).map(Self::optional),
            (Self::Map(key, value), Self::Map(other_key, other_value)) => {
                Some(Self::Map(Box::new(key.either(*other_key)?), Box::new(value.either(*other_value)?)))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => f.write_str("a value of any type"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("a bool"),
            Self::Int => f.write_str("an int"),
            Self::Uint => f.write_str("a uint"),
            Self::Double => f.write_str("a double"),
            Self::String => f.write_str("a string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Type => f.write_str("a type"),
            Self::Quantity => f.write_str("a quantity"),
            Self::Semver => f.write_str("a semantic version"),
            Self::List(_) => f.write_str("a list"),
            Self::Map(..) => f.write_str("a map"),
            Self::Optional(_) => f.write_str("an optional value"),
            Self::Device => f.write_str("a device"),
            Self::Attributes => f.write_str("the map of all attributes"),
            Self::Capacities => f.write_str("the map of all capacities"),
            Self::AttributesOf(_) => f.write_str("a map of attributes"),
            Self::CapacitiesOf(_) => f.write_str("a map of capacities"),
        }
    }
}
