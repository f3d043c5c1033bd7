//! Logs. Metrics are in [`crate::metrics`].

use std::{ffi::OsString, io::IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::LogFormat;

/// Log to standard error, filtered by `RUST_LOG` (`info` if that is unset or not understood).
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_ansi(colors(std::env::var_os("NO_COLOR"))).with_writer(std::io::stderr);
    // A second initialisation only happens in tests that run several daemons in one process.
    let _ = match format {
        LogFormat::Text => registry.with(lines.with_target(false)).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
}

/// Colors are for people: on a terminal, unless `NO_COLOR` is set to anything (<https://no-color.org>).
fn colors(no_color: Option<OsString>) -> bool {
    no_color.is_none_or(|value| value.is_empty()) && std::io::stderr().is_terminal()
}

/// An error with all its causes on one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.ends_with(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::link::{LinkError, Namespace};

    #[test]
    fn an_error_is_told_with_its_causes() {
        let error = LinkError::Kernel {
            action: "set the MTU to 9000".to_owned(),
            link: "eth7".to_owned(),
            namespace: Namespace::Host,
            source: io::Error::from_raw_os_error(libc::EINVAL),
        };
        let text = chain(&error);
        assert!(text.starts_with("set the MTU to 9000 on eth7 in network namespace host: "), "{text}");
        assert!(text.contains("Invalid argument"), "{text}");
    }
}
