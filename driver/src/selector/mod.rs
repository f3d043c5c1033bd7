//! A CEL device selector: of a DeviceClass, of a claim's request, of `--publish` and `--share`, of a network's uplink.
//!
//! The environment is that of kubernetes `dynamic-resource-allocation/cel/compile.go`: `device.driver`,
//! `device.allowMultipleAllocations`, `device.attributes["domain"].name`, `device.capacity["domain"].name`,
//! `cel.bind()`, and the functions of quantities and semantic versions. An unknown domain is an empty map; an
//! unknown name in it is an error, which `has()`, `in` and `.?` avoid.

//!
//! Expressions are compiled with types ([`check`]): a misspelt name, function or attribute of this driver, and what gives
//! neither true nor false, is an error before any device is looked at.

mod bind;
mod check;
mod facts;
mod functions;
mod kind;
pub mod known;
mod operators;
mod quantity;
mod version;

use std::sync::{Arc, LazyLock};

use cel::{Context, Env, Program, Value};
use k8s_openapi::api::resource::v1::Device;

pub use check::Devices;
pub use quantity::Quantity;

/// Longest expression (`CELSelectorExpressionMaxLength`).
const MAX_BYTES: usize = 10 * 1024;

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    // Both only fail on a name that is declared twice, and none is.
    let declared = facts::declare(&mut env)
        .and_then(|()| quantity::declare(&mut env))
        .and_then(|()| version::declare(&mut env))
        .and_then(|()| env.add_macro(bind::bind()));
    if let Err(error) = declared {
        tracing::error!(%error, "CEL functions are missing");
    }
    Arc::new(env)
});

/// What is no selector: no CEL expression, too long, or one that can never be true or false of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{expression:?} is no device selector: {}", self.place())]
pub struct NotCel {
    /// The expression as given.
    pub expression: String,
    /// Line, from 1.
    pub line: isize,
    /// Column, from 1.
    pub column: isize,
    /// What is wrong there.
    pub message: String,
}

impl NotCel {
    fn new(expression: &str, line: isize, column: isize, message: impl Into<String>) -> Self {
        Self { expression: expression.to_owned(), line, column, message: message.into() }
    }

    /// Where it is wrong, and why, without the expression.
    #[must_use]
    pub fn place(&self) -> String {
        format!("line {}, column {}: {}", self.line, self.column, self.message)
    }
}

/// Why a selector says neither yes nor no.
#[derive(Debug, thiserror::Error)]
pub enum SelectorError {
    /// Not CEL.
    #[error(transparent)]
    Parse(#[from] NotCel),
    /// Failed on a device, or gave something other than true or false.
    #[error("{expression:?} fails on device {device:?}: {message}")]
    Evaluate {
        /// The expression.
        expression: String,
        /// The device.
        device: String,
        /// The reason.
        message: String,
    },
}

/// A compiled selector.
#[derive(Debug)]
pub struct Selector {
    expression: String,
    program: Program,
}

impl Selector {
    /// Compile with types. `driver` is this driver, whose attributes are known. A function that Kubernetes has and this
    /// driver does not evaluate is refused.
    pub fn compile(driver: &str, devices: Devices, expression: &str) -> Result<Self, NotCel> {
        let program = parse(expression)?;
        let checked = checked(&program, driver, devices, expression)?;
        if let Some((at, name)) = checked.of_kubernetes {
            let message = format!(
                "{name}() is a function that the scheduler of Kubernetes evaluates, and netferry does not; write the \
                 condition without it"
            );
            return Err(not_cel(&program, expression, check::Fault { at, message }));
        }
        Ok(Self { expression: expression.to_owned(), program })
    }

    /// Check a selector that the scheduler evaluates, which knows more functions than [`Selector::compile`].
    pub fn check(driver: &str, expression: &str) -> Result<(), NotCel> {
        let program = parse(expression)?;
        checked(&program, driver, Devices::All, expression).map(|_| ())
    }

    /// Whether `device`, published by `driver`, is selected.
    pub fn matches(&self, driver: &str, device: &Device) -> Result<bool, SelectorError> {
        let fail = |message| SelectorError::Evaluate {
            expression: self.expression.clone(),
            device: device.name.clone(),
            message,
        };
        let mut context = Context::with_env(Arc::clone(&ENV));
        context.add_variable_as_val("device", Box::new(facts::of(driver, device).map_err(fail)?));
        match self.program.execute(&context) {
            Ok(Value::Bool(selected)) => Ok(selected),
            Ok(other) => Err(fail(format!("it gives {:?}; allowed: true or false", other.type_of()))),
            Err(error) => Err(fail(error.to_string())),
        }
    }
}

fn parse(expression: &str) -> Result<Program, NotCel> {
    if expression.len() > MAX_BYTES {
        let message = format!("{} bytes; at most {MAX_BYTES} are allowed", expression.len());
        return Err(NotCel::new(expression, 1, 1, message));
    }
    if expression.trim().is_empty() {
        return Err(NotCel::new(expression, 1, 1, "it is empty; a condition over `device` is allowed"));
    }
    ENV.compile(expression).map_err(|errors| match errors.errors.first() {
        // The parser counts columns from 0.
        Some(first) => NotCel::new(expression, first.pos.0, first.pos.1 + 1, first.msg.clone()),
        None => NotCel::new(expression, 1, 1, "unknown error"),
    })
}

fn checked(
    program: &Program,
    driver: &str,
    devices: Devices,
    expression: &str,
) -> Result<check::Checked, NotCel> {
    check::check(program.expression(), driver, devices).map_err(|fault| not_cel(program, expression, fault))
}

/// A fault with its place in the text.
fn not_cel(program: &Program, expression: &str, fault: check::Fault) -> NotCel {
    let start = program.source_info().offset_for(fault.at).map_or(0, |(start, _)| start as usize);
    let before: String = expression.chars().take(start).collect();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
    let number = |number: usize| isize::try_from(number).unwrap_or(isize::MAX);
    NotCel::new(expression, number(line), number(column), fault.message)
}

#[cfg(test)]
mod tests;
