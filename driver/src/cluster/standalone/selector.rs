//! A CEL device selector, as in a DeviceClass or a claim's request.
//!
//! The environment is that of kubernetes `dynamic-resource-allocation/cel/compile.go`: `device.driver`,
//! `device.allowMultipleAllocations`, `device.attributes["domain"].name`, `device.capacity["domain"].name`. An
//! unknown domain is an empty map; an unknown name in it is an error, which `has()` and `in` avoid.

mod facts;
mod quantity;
mod version;

use std::sync::{Arc, LazyLock};

use cel::{Context, Env, Program, Value};
use k8s_openapi::api::resource::v1::Device;

pub(super) use quantity::Quantity;

/// Longest expression (`CELSelectorExpressionMaxLength`).
const MAX_BYTES: usize = 10 * 1024;

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    // Both only fail on a name that is declared twice, and none is.
    let declared = quantity::declare(&mut env).and_then(|()| version::declare(&mut env));
    if let Err(error) = declared {
        tracing::error!(%error, "CEL functions are missing");
    }
    Arc::new(env)
});

/// Why a selector says neither yes nor no.
#[derive(Debug, thiserror::Error)]
pub enum SelectorError {
    /// Not CEL.
    #[error("{expression:?} is not a CEL expression: {message}")]
    Parse {
        /// The expression.
        expression: String,
        /// The parser's words.
        message: String,
    },
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
    pub fn compile(expression: &str) -> Result<Self, SelectorError> {
        let parse = |message| SelectorError::Parse { expression: expression.to_owned(), message };
        if expression.len() > MAX_BYTES {
            return Err(parse(format!("{} bytes; at most {MAX_BYTES} are allowed", expression.len())));
        }
        let program = ENV.compile(expression).map_err(|error| parse(error.to_string()))?;
        Ok(Self { expression: expression.to_owned(), program })
    }

    /// Whether `device` of `driver` is selected.
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
            Ok(other) => Err(fail(format!("it gives {other:?}; allowed: true or false"))),
            Err(error) => Err(fail(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests;
