//! `quantity()`, its comparisons and its arithmetic (kubernetes `apiserver/pkg/cel/library/quantity.go`).

use std::{any::Any, str::FromStr};

use cel::{
    DeclarationError, Env, ExecutionError,
    common::{
        types::{CelBool, CelDouble, CelInt, CelString, Type},
        value::{StaticVal, Val},
    },
};

static QUANTITY: Type = Type::new_unspecified_type("kubernetes.Quantity");

/// A quantity in units of 10⁻⁹, the finest that Kubernetes knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(pub i128);

/// 1, in the units of a [`Quantity`].
const ONE: i128 = 1_000_000_000;

impl FromStr for Quantity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a quantity (for example 10, 1.5Gi, 25G, 100m)");
        let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (negative, digits) = match number.as_bytes().first() {
            Some(b'-') => (true, &number[1..]),
            Some(b'+') => (false, &number[1..]),
            _ => (false, number),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if (whole.is_empty() && fraction.is_empty())
            || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit())
        {
            return Err(bad());
        }
        let exponent = i32::try_from(fraction.len()).map_err(|_| bad())?;
        let mantissa: i128 = format!("0{whole}{fraction}").parse().map_err(|_| bad())?;
        let (binary, decimal) = scale(suffix).ok_or_else(bad)?;
        let power = decimal + 9 - exponent;
        let ten = 10_i128.checked_pow(power.unsigned_abs()).ok_or_else(bad)?;
        let scaled = mantissa.checked_mul(1 << binary).ok_or_else(bad)?;
        // What is finer than 10⁻⁹ is rounded up, as Kubernetes does.
        let nano =
            if power >= 0 { scaled.checked_mul(ten).ok_or_else(bad)? } else { (scaled + ten - 1) / ten };
        Ok(Self(if negative { -nano } else { nano }))
    }
}

/// Powers of two and of ten that a suffix stands for.
fn scale(suffix: &str) -> Option<(u32, i32)> {
    let binary = |power| Some((power, 0));
    let decimal = |power| Some((0, power));
    match suffix {
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        _ => {
            let power = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (-18..=18).contains(&power).then_some((0, power))
        }
    }
}

impl Val for Quantity {
    fn get_type(&self) -> &Type {
        &QUANTITY
    }

    fn cel_type() -> &'static Type {
        &QUANTITY
    }

    fn equals(&self, other: &dyn Val) -> bool {
        other.downcast_ref::<Self>() == Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(*self)
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Quantity {}

fn quantity(text: &CelString<'_>) -> Result<Quantity, ExecutionError> {
    text.inner().parse().map_err(|error: String| ExecutionError::function_error("quantity", error))
}

fn is_quantity(text: &CelString<'_>) -> CelBool {
    CelBool::from(text.inner().parse::<Quantity>().is_ok())
}

fn compare_to(this: &Quantity, other: &Quantity) -> CelInt {
    CelInt::from(this.cmp(other) as i64)
}

fn is_greater_than(this: &Quantity, other: &Quantity) -> CelBool {
    CelBool::from(this > other)
}

fn is_less_than(this: &Quantity, other: &Quantity) -> CelBool {
    CelBool::from(this < other)
}

/// The whole number, if it is one and fits into 64 bits.
fn whole(this: &Quantity) -> Option<i64> {
    (this.0 % ONE == 0).then(|| i64::try_from(this.0 / ONE).ok()).flatten()
}

fn is_integer(this: &Quantity) -> CelBool {
    CelBool::from(whole(this).is_some())
}

fn as_integer(this: &Quantity) -> Result<CelInt, ExecutionError> {
    whole(this)
        .map(CelInt::from)
        .ok_or_else(|| ExecutionError::function_error("asInteger", "the quantity is no 64-bit integer"))
}

#[expect(clippy::cast_precision_loss, reason = "approximate, as its name says")]
fn as_approximate_float(this: &Quantity) -> CelDouble {
    CelDouble::from(this.0 as f64 / ONE as f64)
}

fn sign(this: &Quantity) -> CelInt {
    CelInt::from(this.0.signum() as i64)
}

fn checked(function: &str, result: Option<i128>) -> Result<Quantity, ExecutionError> {
    result.map(Quantity).ok_or_else(|| ExecutionError::function_error(function, "the result is too large"))
}

fn add(this: &Quantity, other: &Quantity) -> Result<Quantity, ExecutionError> {
    checked("add", this.0.checked_add(other.0))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature CEL functions have")]
fn add_integer(this: &Quantity, other: &CelInt) -> Result<Quantity, ExecutionError> {
    checked("add", this.0.checked_add(i128::from(*other.inner()) * ONE))
}

fn sub(this: &Quantity, other: &Quantity) -> Result<Quantity, ExecutionError> {
    checked("sub", this.0.checked_sub(other.0))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature CEL functions have")]
fn sub_integer(this: &Quantity, other: &CelInt) -> Result<Quantity, ExecutionError> {
    checked("sub", this.0.checked_sub(i128::from(*other.inner()) * ONE))
}

/// Make the functions known.
pub(super) fn declare(env: &mut Env) -> Result<(), DeclarationError> {
    cel::add_overload!(env, fn quantity: (CelString) -> Result<Quantity>)?;
    cel::add_overload!(env, fn is_quantity: (CelString) -> CelBool)?;
    cel::add_member_overload!(env, fn compare_to: (Quantity, Quantity) -> CelInt)?;
    cel::add_member_overload!(env, fn is_greater_than: (Quantity, Quantity) -> CelBool)?;
    cel::add_member_overload!(env, fn is_less_than: (Quantity, Quantity) -> CelBool)?;
    cel::add_member_overload!(env, fn is_integer: (Quantity) -> CelBool)?;
    cel::add_member_overload!(env, fn as_integer: (Quantity) -> Result<CelInt>)?;
    cel::add_member_overload!(env, fn as_approximate_float: (Quantity) -> CelDouble)?;
    // Kubernetes declares this one as a function: `sign(q)`.
    cel::add_overload!(env, fn sign: (Quantity) -> CelInt)?;
    cel::add_member_overload!(env, fn add: (Quantity, Quantity) -> Result<Quantity>)?;
    cel::add_member_overload!(env, fn add_integer: (Quantity, CelInt) -> Result<Quantity>, name = "add")?;
    cel::add_member_overload!(env, fn sub: (Quantity, Quantity) -> Result<Quantity>)?;
    cel::add_member_overload!(env, fn sub_integer: (Quantity, CelInt) -> Result<Quantity>, name = "sub")
}
