//! `/metrics`, `/healthz` and `/readyz`.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::{Metrics, format::Format},
    readiness::Readiness,
    serving::{self, Bounds},
};

/// What the handlers see.
#[derive(Clone, Debug)]
pub struct Exposed {
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// State of the parts.
    pub readiness: Arc<Readiness>,
}

/// Bind `address`.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serve until `shutdown`.
pub async fn serve(listener: TcpListener, exposed: Exposed, shutdown: CancellationToken) {
    serving::serve(listener, router(exposed), Bounds::default(), shutdown).await;
}

fn router(exposed: Exposed) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(exposed)
}

async fn metrics(State(exposed): State<Exposed>, headers: HeaderMap) -> Response {
    let format = Format::accepted(&headers);
    // Reading the pinned maps is a few system calls per endpoint: off the event loop.
    let encoded = tokio::task::spawn_blocking(move || exposed.metrics.encode(format)).await;
    match encoded {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Alive means that no part has ended that must not end; a part that waits for its peer is alive.
async fn healthz(State(exposed): State<Exposed>) -> Response {
    report(&exposed.readiness.alive())
}

/// Ready means that claims can be prepared and sandboxes attached.
async fn readyz(State(exposed): State<Exposed>) -> Response {
    report(&exposed.readiness.ready())
}

fn report(missing: &[String]) -> Response {
    if missing.is_empty() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n").into_response()
}
