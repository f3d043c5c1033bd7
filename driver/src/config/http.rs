//! Where HTTP is served.

use std::net::SocketAddr;

/// Where to serve HTTP, if anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpAddress(pub Option<SocketAddr>);

pub(super) fn http_address(text: &str) -> Result<HttpAddress, String> {
    if text == "none" {
        return Ok(HttpAddress(None));
    }
    text.parse()
        .map(|address| HttpAddress(Some(address)))
        .map_err(|_| "ADDRESS:PORT or none is allowed".to_owned())
}
