//! Which runtime the daemon is connected to, for `netferry doctor`: a file that a reboot takes away.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

/// Name of the file in `--run-dir`.
const FILE: &str = "runtime.json";

/// A runtime, as it named itself to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeNote {
    /// Such as `containerd`.
    pub name: String,
    /// Such as `2.1.9`.
    pub version: String,
}

impl RuntimeNote {
    /// Write it into the folder, which is made if it is not there.
    pub fn write(&self, run_dir: &Path) -> io::Result<()> {
        fs::create_dir_all(run_dir)?;
        let file = tempfile::NamedTempFile::new_in(run_dir)?;
        serde_json::to_writer(&file, self)?;
        file.persist(run_dir.join(FILE))?;
        Ok(())
    }

    /// What a daemon has written since the machine was started; `None` if none has.
    pub fn read(run_dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(run_dir.join(FILE)) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        assert_eq!(RuntimeNote::read(&run).unwrap(), None);
        let note = RuntimeNote { name: "containerd".into(), version: "2.1.9".into() };
        note.write(&run).unwrap();
        assert_eq!(RuntimeNote::read(&run).unwrap(), Some(note));
        fs::write(run.join(FILE), "{").unwrap();
        assert_eq!(RuntimeNote::read(&run).unwrap(), None);
    }
}
