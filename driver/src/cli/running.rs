//! What the running daemon has, or what a daemon has left on the disk.

use anyhow::{Context as _, Result, bail};

use crate::{
    claim::store::Store,
    config::StateArgs,
    network::peers::told,
    query::{
        self,
        client::{NoAnswer, ask},
        report::Claims,
    },
};

/// Claims that are prepared, with their policies: as the running daemon says, else as the last one has written them.
/// Standard error says which.
pub(super) fn claims(state: &StateArgs) -> Result<Claims> {
    match ask(&state.query_socket(), query::CLAIMS) {
        Ok(claims) => {
            eprintln!("netferry: as the running daemon says");
            Ok(claims)
        }
        Err(error @ (NoAnswer::Unusable { .. } | NoAnswer::NotPermitted(_))) => Err(error.into()),
        Err(error @ NoAnswer::NoDaemon(_)) => {
            require_state(state)?;
            let claims = Store::read(&state.claims_dir()).context("cannot read the checkpoints")?;
            eprintln!(
                "netferry: {error}; shown is what the last one has written below {}",
                state.state_dir.display()
            );
            Ok(Claims { claims, peers: told(&state.peers_file()) })
        }
    }
}

/// Refuse to show an empty table where no daemon has ever been.
pub(super) fn require_state(state: &StateArgs) -> Result<()> {
    let folder = state.claims_dir();
    match folder.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => bail!("Netferry does not run on this node: there is no {}", folder.display()),
        Err(error) => Err(error).with_context(|| format!("cannot look for {}", folder.display())),
    }
}
