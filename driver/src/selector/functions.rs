//! The functions of selectors: those that are evaluated here, with the types that they take, and the names of those that only
//! Kubernetes evaluates.

use super::kind::Kind;

/// A parameter, or the value that a function is called on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    Any,
    Number,
    Int,
    Bool,
    String,
    Bytes,
    /// A string, bytes, a list or a map.
    Sized,
    Quantity,
    Semver,
    Optional,
}

impl Takes {
    fn takes(self, given: &Kind) -> bool {
        if *given == Kind::Dyn {
            return true;
        }
        match self {
            Self::Any => true,
            Self::Number => given.is_number(),
            Self::Int => *given == Kind::Int,
            Self::Bool => *given == Kind::Bool,
            Self::String => *given == Kind::String,
            Self::Bytes => *given == Kind::Bytes,
            Self::Sized => matches!(
                given,
                Kind::String
                    | Kind::Bytes
                    | Kind::List(_)
                    | Kind::Map(..)
                    | Kind::Attributes
                    | Kind::Capacities
                    | Kind::AttributesOf(_)
                    | Kind::CapacitiesOf(_)
            ),
            Self::Quantity => *given == Kind::Quantity,
            Self::Semver => *given == Kind::Semver,
            Self::Optional => matches!(given, Kind::Optional(_)),
        }
    }
}

/// What a function gives.
#[derive(Clone, Copy, Debug)]
enum Gives {
    Dyn,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Type,
    Quantity,
    Semver,
    /// An optional value of its first argument.
    OptionalOfIt,
    /// What its first argument, an optional value, has.
    Inside,
    /// Its first argument.
    It,
}

/// A function: its name, whether it is called on its first argument (`a.f(b)`), its arguments, its result.
type Function = (&'static str, bool, &'static [Takes], Gives);

/// Those that are evaluated here.
const FUNCTIONS: &[Function] = &[
    ("size", false, &[Takes::Sized], Gives::Int),
    ("size", true, &[Takes::Sized], Gives::Int),
    ("contains", true, &[Takes::String, Takes::String], Gives::Bool),
    ("startsWith", true, &[Takes::String, Takes::String], Gives::Bool),
    ("endsWith", true, &[Takes::String, Takes::String], Gives::Bool),
    ("matches", true, &[Takes::String, Takes::String], Gives::Bool),
    ("matches", false, &[Takes::String, Takes::String], Gives::Bool),
    ("bool", false, &[Takes::Bool], Gives::Bool),
    ("bool", false, &[Takes::String], Gives::Bool),
    ("int", false, &[Takes::Number], Gives::Int),
    ("int", false, &[Takes::String], Gives::Int),
    ("uint", false, &[Takes::Number], Gives::Uint),
    ("uint", false, &[Takes::String], Gives::Uint),
    ("double", false, &[Takes::Number], Gives::Double),
    ("double", false, &[Takes::String], Gives::Double),
    ("string", false, &[Takes::Number], Gives::String),
    ("string", false, &[Takes::Bool], Gives::String),
    ("string", false, &[Takes::String], Gives::String),
    ("string", false, &[Takes::Bytes], Gives::String),
    ("bytes", false, &[Takes::Bytes], Gives::Bytes),
    ("bytes", false, &[Takes::String], Gives::Bytes),
    ("type", false, &[Takes::Any], Gives::Type),
    ("dyn", false, &[Takes::Any], Gives::Dyn),
    ("@not_strictly_false", false, &[Takes::Any], Gives::Bool),
    ("optional.of", false, &[Takes::Any], Gives::OptionalOfIt),
    ("optional.ofNonZeroValue", false, &[Takes::Any], Gives::OptionalOfIt),
    ("hasValue", true, &[Takes::Optional], Gives::Bool),
    ("value", true, &[Takes::Optional], Gives::Inside),
    ("orValue", true, &[Takes::Optional, Takes::Any], Gives::Inside),
    ("or", true, &[Takes::Optional, Takes::Optional], Gives::It),
    ("quantity", false, &[Takes::String], Gives::Quantity),
    ("isQuantity", false, &[Takes::String], Gives::Bool),
    ("compareTo", true, &[Takes::Quantity, Takes::Quantity], Gives::Int),
    ("isGreaterThan", true, &[Takes::Quantity, Takes::Quantity], Gives::Bool),
    ("isLessThan", true, &[Takes::Quantity, Takes::Quantity], Gives::Bool),
    ("isInteger", true, &[Takes::Quantity], Gives::Bool),
    ("asInteger", true, &[Takes::Quantity], Gives::Int),
    ("asApproximateFloat", true, &[Takes::Quantity], Gives::Double),
    ("sign", false, &[Takes::Quantity], Gives::Int),
    ("add", true, &[Takes::Quantity, Takes::Quantity], Gives::Quantity),
    ("add", true, &[Takes::Quantity, Takes::Int], Gives::Quantity),
    ("sub", true, &[Takes::Quantity, Takes::Quantity], Gives::Quantity),
    ("sub", true, &[Takes::Quantity, Takes::Int], Gives::Quantity),
    ("semver", false, &[Takes::String], Gives::Semver),
    ("isSemver", false, &[Takes::String], Gives::Bool),
    ("compareTo", true, &[Takes::Semver, Takes::Semver], Gives::Int),
    ("isGreaterThan", true, &[Takes::Semver, Takes::Semver], Gives::Bool),
    ("isLessThan", true, &[Takes::Semver, Takes::Semver], Gives::Bool),
    ("major", true, &[Takes::Semver], Gives::Int),
    ("minor", true, &[Takes::Semver], Gives::Int),
    ("patch", true, &[Takes::Semver], Gives::Int),
];

/// Functions and macros of Kubernetes' environment for selectors (`apiserver/pkg/cel/environment/base.go` of 1.36) that are not
/// evaluated here.
const OF_KUBERNETES: &[&str] = &[
    "cidr",
    "containsCIDR",
    "containsIP",
    "isCIDR",
    "masked",
    "prefixLength",
    "family",
    "ip",
    "ip.isCanonical",
    "isGlobalUnicast",
    "isIP",
    "isLinkLocalMulticast",
    "isLinkLocalUnicast",
    "isLoopback",
    "isUnspecified",
    "getEscapedPath",
    "getHost",
    "getHostname",
    "getPort",
    "getQuery",
    "getScheme",
    "isURL",
    "url",
    "find",
    "findAll",
    "indexOf",
    "isSorted",
    "lastIndexOf",
    "max",
    "min",
    "sum",
    "format.named",
    "validate",
    "charAt",
    "format",
    "join",
    "lowerAscii",
    "quote",
    "strings.quote",
    "replace",
    "reverse",
    "split",
    "substring",
    "trim",
    "upperAscii",
    "sets.contains",
    "sets.equivalent",
    "sets.intersects",
    "distinct",
    "first",
    "flatten",
    "last",
    "lists.range",
    "slice",
    "sort",
    "sortBy",
    "transformList",
    "transformMap",
    "transformMapEntry",
    "optional.unwrap",
    "unwrapOpt",
    "duration",
    "timestamp",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "authorizer.group",
    "isExactly",
    "semver",
    "isSemver",
];

/// Names that functions stand behind with a dot: `optional.of()` is no function of a variable `optional`.
pub(super) const NAMESPACES: &[&str] = &["optional", "ip", "format", "sets", "strings", "lists", "math"];

/// What is known of a call.
pub(super) enum Found {
    /// It is evaluated here, and gives this.
    Here(Kind),
    /// Only Kubernetes evaluates it.
    OfKubernetes,
    /// There is a function of this name, and it takes something else.
    OtherArguments,
    /// There is none.
    Unknown,
}

/// Look up a call; `arguments` begin with what the function is called on, if it is.
pub(super) fn find(name: &str, member: bool, arguments: &[Kind]) -> Found {
    let named = || FUNCTIONS.iter().filter(|(known, ..)| *known == name);
    let fits = |(_, of, takes, _): &&Function| {
        *of == member
            && takes.len() == arguments.len()
            && takes.iter().zip(arguments).all(|(takes, given)| takes.takes(given))
    };
    let fitting: Vec<_> = named().filter(fits).collect();
    match fitting[..] {
        [(.., gives)] => Found::Here(result(*gives, arguments)),
        // Of a value that may be of several types, the result may be, too, unless all give the same.
        [(.., one), ..] => {
            let kind = result(*one, arguments);
            let same = fitting.iter().all(|(.., gives)| result(*gives, arguments) == kind);
            Found::Here(if same { kind } else { Kind::Dyn })
        }
        [] if name == "optional.none" && arguments.is_empty() => Found::Here(Kind::optional(Kind::Dyn)),
        // `semver("v1", true)` has an argument that is not read here.
        [] if OF_KUBERNETES.contains(&name) && (arguments.len() > 1 || named().next().is_none()) => {
            Found::OfKubernetes
        }
        [] if named().next().is_some() => Found::OtherArguments,
        [] => Found::Unknown,
    }
}

/// Whether the name is one that only Kubernetes knows.
pub(super) fn is_of_kubernetes(name: &str) -> bool {
    OF_KUBERNETES.contains(&name) && !FUNCTIONS.iter().any(|(known, ..)| *known == name)
}

/// Every name.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.iter().map(|(name, ..)| *name).chain(OF_KUBERNETES.iter().copied())
}

fn result(gives: Gives, arguments: &[Kind]) -> Kind {
    let first = || arguments.first().cloned().unwrap_or(Kind::Dyn);
    match gives {
        Gives::Dyn => Kind::Dyn,
        Gives::Bool => Kind::Bool,
        Gives::Int => Kind::Int,
        Gives::Uint => Kind::Uint,
        Gives::Double => Kind::Double,
        Gives::String => Kind::String,
        Gives::Bytes => Kind::Bytes,
        Gives::Type => Kind::Type,
        Gives::Quantity => Kind::Quantity,
        Gives::Semver => Kind::Semver,
        Gives::OptionalOfIt => Kind::optional(first()),
        Gives::It => first(),
        Gives::Inside => match first() {
            Kind::Optional(inside) => *inside,
            _ => Kind::Dyn,
        },
    }
}
