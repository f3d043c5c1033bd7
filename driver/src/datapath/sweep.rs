//! The broom of the flow table: a program in the kernel, which this runs.
//!
//! It looks at every flow where it is. Reading them all here instead, to find the few that are over, costs two system calls a
//! flow, and more time passes between a look and a removal, in which a frame may open the flow anew.

use aya::Ebpf;
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _};

use super::{AyaDatapath, DatapathError, bpf_error};

/// What one run of the program removes at most, as in driver-ebpf.
const MOST: u32 = 4096;
/// Runs at a time: more than any table needs.
const RUNS: usize = 1024;
const PROGRAM: &str = "flow_sweep";

/// Takes flows and fragments that are over out of their tables. The programs do not count on it: for them a flow is over
/// by its age. It makes room before the tables have to evict, and counts the flows of each endpoint anew.
pub struct FlowSweeper(Ebpf);

impl FlowSweeper {
    /// Loads the program for the tables of a datapath.
    pub fn open(datapath: &AyaDatapath) -> Result<Self, DatapathError> {
        let nobodys = datapath.written().nobodys.take();
        let mut object = nobodys.map_or_else(|| datapath.programs.prepare(0), Ok)?;
        let failed = |source| bpf_error(format!("load the program {PROGRAM}"), source);
        let program: &mut RawTracePoint =
            object.program_mut(PROGRAM).ok_or_else(missing)?.try_into().map_err(failed)?;
        program.load().map_err(failed)?;
        Ok(Self(object))
    }

    /// Removes what is over, in batches. Says how many entries that were.
    pub fn sweep(&self) -> Result<usize, DatapathError> {
        let mut removed = 0;
        for _ in 0..RUNS {
            let batch = self.run()?;
            removed += batch as usize;
            if batch < MOST {
                break;
            }
        }
        Ok(removed)
    }

    fn run(&self) -> Result<u32, DatapathError> {
        let failed = |source| bpf_error(format!("run the program {PROGRAM}"), source);
        let program: &RawTracePoint =
            self.0.program(PROGRAM).ok_or_else(missing)?.try_into().map_err(failed)?;
        Ok(program.test_run(RawTracePointRunOptions::new()).map_err(failed)?.return_value)
    }
}

fn missing() -> DatapathError {
    bpf_error(format!("find the program {PROGRAM}"), "the eBPF object has no such program")
}
