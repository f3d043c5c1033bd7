//! `netferry block`: the node's block list.

use anyhow::{Context as _, Result, bail};

use super::show;
use crate::{
    config::{BlockArgs, BlockCommand, StateArgs},
    datapath::AyaDatapath,
};

/// Change the list or print it.
pub fn run(command: &BlockCommand) -> Result<()> {
    match command {
        BlockCommand::Add(BlockArgs { prefixes, state }) => {
            let datapath = open(state)?;
            for prefix in prefixes {
                datapath.block(*prefix)?;
            }
        }
        BlockCommand::Remove(BlockArgs { prefixes, state }) => {
            let datapath = open(state)?;
            for prefix in prefixes {
                if !datapath.unblock(*prefix)? {
                    bail!("{prefix} is not on the list; `netferry block list` prints it");
                }
            }
        }
        BlockCommand::List(args) => {
            let blocked = open(&args.state)?.blocked()?;
            show::print(
                args.output,
                &blocked,
                ["PREFIX"],
                blocked.iter().map(|prefix| [prefix.to_string()]),
            )?;
        }
    }
    Ok(())
}

fn open(state: &StateArgs) -> Result<AyaDatapath> {
    AyaDatapath::open_existing(&state.pin_root()).context("cannot open the pinned maps")
}
