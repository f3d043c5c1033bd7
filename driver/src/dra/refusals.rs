//! The log of peers that are refused before a service sees their call.
//!
//! The kubelet tries again for ever and shows its reason in its own log alone, so each kind of refusal must be
//! visible here: by the filter on the connection, by the HTTP/2 server, and by the router of the services.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use tonic::service::Routes;
use tracing::warn;

/// A refused peer comes again and again: after the first, so much time is between two log lines of a socket.
const QUIET: Duration = Duration::from_mins(1);
/// How much of what a peer or an error says goes into a log line.
const EXCERPT: usize = 200;

/// The log of one socket.
#[derive(Debug)]
pub(super) struct Refusals {
    socket: PathBuf,
    pace: Mutex<Pace>,
    last: LastRefusal,
}

/// The last refusal at any of the sockets, with its time.
#[derive(Clone, Debug, Default)]
pub struct LastRefusal(Arc<Mutex<Option<String>>>);

impl LastRefusal {
    /// What was refused, if anything was.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }
}

/// Decides which refusals are logged.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    suppressed: u64,
}

impl Pace {
    /// The number of refusals since the last one that was logged, if this one is to be logged.
    fn next(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < QUIET) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Refusals {
    pub(super) fn new(socket: PathBuf, last: LastRefusal) -> Self {
        Self { socket, pace: Mutex::default(), last }
    }

    /// Log that a peer was refused for this reason, unless the last such line is younger than a minute.
    pub(super) fn log(&self, reason: fmt::Arguments<'_>) {
        let reason: String = reason.to_string().chars().take(EXCERPT).collect();
        let now = Timestamp::now();
        self.last.set(format!("{now:.0} {}: {reason}", self.socket.display()));
        let next = self.pace.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now());
        if let Some(suppressed) = next {
            warn!(socket = %self.socket.display(), reason, suppressed, "refused a peer below the service");
        }
    }

    /// The same services, whose calls are logged where the router or the codec refuses them: unknown services
    /// and methods, wrong content types, messages that cannot be decoded. The services themselves answer every
    /// call with a message.
    pub(super) fn watch(self: &Arc<Self>, routes: Routes) -> Routes {
        let layer = middleware::from_fn_with_state(Arc::clone(self), log_refused);
        Routes::from(routes.into_axum_router().layer(layer))
    }
}

async fn log_refused(State(refusals): State<Arc<Refusals>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    if let Some(reason) = refusal(response.status(), response.headers()) {
        refusals.log(format_args!("{reason} for {path}"));
    }
    response
}

/// Why a call was answered with an error instead of a message: `grpc-status` is among the headers only of such an
/// answer (gRPC over HTTP/2, Trailers-Only).
fn refusal(status: StatusCode, headers: &HeaderMap) -> Option<String> {
    let header = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    match header("grpc-status") {
        Some(code) if code != "0" => {
            let message = header("grpc-message").unwrap_or_default();
            Some(format!("grpc-status {code} {message}").trim_end().to_owned())
        }
        _ if status != StatusCode::OK => Some(format!("HTTP status {status}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_logged_and_then_one_a_minute_with_the_count_of_the_others() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let mut at = |seconds| pace.next(start + Duration::from_secs(seconds));
        assert_eq!(at(0), Some(0));
        assert_eq!([at(1), at(30), at(59)], [None; 3]);
        assert_eq!(at(60), Some(3));
        assert_eq!(at(61), None);
        assert_eq!(at(500), Some(1));
    }

    #[test]
    fn answers_without_a_message_are_refusals() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
        };
        assert_eq!(refusal(StatusCode::OK, &headers(&[("content-type", "application/grpc")])), None);
        assert_eq!(refusal(StatusCode::OK, &headers(&[("grpc-status", "0")])), None);
        assert_eq!(
            refusal(StatusCode::OK, &headers(&[("grpc-status", "12")])).as_deref(),
            Some("grpc-status 12")
        );
        assert_eq!(
            refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, &headers(&[])).as_deref(),
            Some("HTTP status 415 Unsupported Media Type")
        );
    }
}
