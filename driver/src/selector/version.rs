//! `semver()` and its comparisons (kubernetes `apiserver/pkg/cel/library/semverlib.go`).

use std::{any::Any, cmp::Ordering, str::FromStr};

use cel::{
    DeclarationError, Env, ExecutionError,
    common::{
        types::{CelBool, CelInt, CelString, Type},
        value::{StaticVal, Val},
    },
};

static VERSION: Type = Type::new_unspecified_type("kubernetes.Semver");

/// A semantic version 2.0.0; build metadata takes no part in comparisons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    numbers: [u64; 3],
    pre: Vec<Part>,
}

/// One identifier of a pre-release; numbers sort before words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Word(String),
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a semantic version (for example 1.2.3)");
        let number = |part: &str| {
            let plain = part == "0" || !part.starts_with('0');
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse::<u64>().ok().filter(|_| plain && digits)
        };
        let (text, _build) = text.split_once('+').unwrap_or((text, ""));
        let (core, pre) = text.split_once('-').map_or((text, None), |(core, pre)| (core, Some(pre)));
        let numbers: Vec<u64> = core.split('.').map(number).collect::<Option<_>>().ok_or_else(bad)?;
        let part = |part: &str| match number(part) {
            Some(number) => Some(Part::Number(number)),
            None if part.is_empty() => None,
            None => Some(Part::Word(part.to_owned())),
        };
        let pre = pre.map_or(Some(Vec::new()), |pre| pre.split('.').map(part).collect()).ok_or_else(bad)?;
        Ok(Self { numbers: numbers.try_into().map_err(|_| bad())?, pre })
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        // A release is later than its pre-releases.
        let released = self.pre.is_empty().cmp(&other.pre.is_empty());
        self.numbers.cmp(&other.numbers).then(released).then_with(|| self.pre.cmp(&other.pre))
    }
}

impl Val for Version {
    fn get_type(&self) -> &Type {
        &VERSION
    }

    fn cel_type() -> &'static Type {
        &VERSION
    }

    fn equals(&self, other: &dyn Val) -> bool {
        other.downcast_ref::<Self>() == Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Version {}

fn semver(text: &CelString<'_>) -> Result<Version, ExecutionError> {
    text.inner().parse().map_err(|error: String| ExecutionError::function_error("semver", error))
}

fn is_semver(text: &CelString<'_>) -> CelBool {
    CelBool::from(text.inner().parse::<Version>().is_ok())
}

fn compare_to(this: &Version, other: &Version) -> CelInt {
    CelInt::from(this.cmp(other) as i64)
}

fn is_greater_than(this: &Version, other: &Version) -> CelBool {
    CelBool::from(this > other)
}

fn is_less_than(this: &Version, other: &Version) -> CelBool {
    CelBool::from(this < other)
}

/// One of the three numbers; kubernetes' are 64-bit integers with a sign, too.
fn number(number: u64) -> CelInt {
    CelInt::from(i64::try_from(number).unwrap_or(i64::MAX))
}

fn major(this: &Version) -> CelInt {
    number(this.numbers[0])
}

fn minor(this: &Version) -> CelInt {
    number(this.numbers[1])
}

fn patch(this: &Version) -> CelInt {
    number(this.numbers[2])
}

/// Make the functions known.
pub(super) fn declare(env: &mut Env) -> Result<(), DeclarationError> {
    cel::add_overload!(env, fn semver: (CelString) -> Result<Version>)?;
    cel::add_overload!(env, fn is_semver: (CelString) -> CelBool)?;
    cel::add_member_overload!(env, fn compare_to: (Version, Version) -> CelInt)?;
    cel::add_member_overload!(env, fn is_greater_than: (Version, Version) -> CelBool)?;
    cel::add_member_overload!(env, fn is_less_than: (Version, Version) -> CelBool)?;
    cel::add_member_overload!(env, fn major: (Version) -> CelInt)?;
    cel::add_member_overload!(env, fn minor: (Version) -> CelInt)?;
    cel::add_member_overload!(env, fn patch: (Version) -> CelInt)
}
