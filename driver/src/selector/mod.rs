//! A CEL device selector: of a DeviceClass, of a claim's request, of `--publish` and `--share`, of a network's uplink.
//!
//! The environment is that of kubernetes `dynamic-resource-allocation/cel/compile.go`: `device.driver`,
//! `device.allowMultipleAllocations`, `device.attributes["domain"].name`, `device.capacity["domain"].name`,
//! `cel.bind()`, and the functions of quantities and semantic versions. An unknown domain is an empty map; an
//! unknown name in it is an error, which `has()`, `in` and `.?` avoid.

mod bind;
mod facts;
mod quantity;
mod version;

use std::sync::{Arc, LazyLock};

use cel::{Context, Env, Program, Value};
use k8s_openapi::api::resource::v1::Device;

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

/// What is no CEL expression, or too long.
#[derive(Debug, thiserror::Error)]
#[error("{expression:?} is not a CEL expression: line {line}, column {column}: {message}")]
pub struct NotCel {
    /// The expression as given.
    pub expression: String,
    /// Line, from 1.
    pub line: isize,
    /// Column, from 1.
    pub column: isize,
    /// What the parser expected.
    pub message: String,
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
    /// Compile.
    pub fn compile(expression: &str) -> Result<Self, NotCel> {
        let refuse =
            |line, column, message| NotCel { expression: expression.to_owned(), line, column, message };
        if expression.len() > MAX_BYTES {
            let message = format!("{} bytes; at most {MAX_BYTES} are allowed", expression.len());
            return Err(refuse(1, 1, message));
        }
        let program = ENV.compile(expression).map_err(|errors| match errors.errors.first() {
            // The parser counts columns from 0.
            Some(first) => refuse(first.pos.0, first.pos.1 + 1, first.msg.clone()),
            None => refuse(1, 1, "unknown error".to_owned()),
        })?;
        Ok(Self { expression: expression.to_owned(), program })
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

#[cfg(test)]
mod tests;
