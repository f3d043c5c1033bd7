//! What the running daemon says of itself, of the kubelet and of the runtime; and their sockets where none runs.

use std::{fs, os::unix::net::UnixStream, path::Path};

use super::{Check, State};
use crate::{
    claim::store::Store,
    config::DoctorArgs,
    daemon::runtime_note::RuntimeNote,
    dra::Sockets,
    query::{
        STATUS,
        client::{NoAnswer, ask},
        report::Status,
    },
    version,
};

/// The daemon's answer, and what is to be said if there is none.
pub(super) fn status(args: &DoctorArgs) -> (Option<Status>, Check) {
    match ask::<Status>(&args.state.query_socket(), STATUS) {
        Ok(status) => {
            let check = daemon(&status);
            (Some(status), check)
        }
        Err(error @ NoAnswer::NoDaemon(_)) => {
            let prepared = Store::read(&args.state.claims_dir()).map_or(0, |claims| claims.len());
            let cure = "start it: `netferry run`, or look for its pod in `kubectl -n netferry-system get pods -o wide`";
            let check = if prepared == 0 {
                Check::of("daemon", State::Warn, Err(error.to_string()), cure)
            } else {
                let found =
                    format!("{error}, and {prepared} claims are prepared: their links do not come home");
                Check::of("daemon", State::Fail, Err(found), cure)
            };
            (None, check)
        }
        Err(error) => {
            let cure = "run this as root, with the netferry of the daemon";
            (None, Check::of("daemon", State::Fail, Err(error.to_string()), cure))
        }
    }
}

fn daemon(status: &Status) -> Check {
    let Status { version, commit, programs, pid, .. } = status;
    let said = format!("{version} (commit {commit}, programs {programs}), process {pid}");
    if !status.ended.is_empty() {
        let found = format!("{said}: {}", status.ended.join("; "));
        return Check::of("daemon", State::Fail, Err(found), "its log says why; it is started again");
    }
    let other = version != version::VERSION || commit != version::COMMIT;
    let found = if other { Err(format!("{said}; this command is {}", version::long())) } else { Ok(said) };
    Check::of("daemon", State::Warn, found, "use the netferry of the daemon, as in its container")
}

/// The kubelet's side.
pub(super) fn kubelet(args: &DoctorArgs, status: Option<&Status>) -> Check {
    let cure = "start the kubelet, or name its root folder with --kubelet-root-dir; its log has lines with the name of the socket";
    let Some(status) = status else {
        let folder = args.kubelet_root_dir.join("plugins_registry");
        let left = Sockets::below(&args.kubelet_root_dir, crate::DRIVER_NAME).registration;
        let found = match fs::metadata(&folder) {
            Err(error) => Err(format!("{}: {error}", folder.display())),
            Ok(_) if left.exists() && UnixStream::connect(&left).is_err() => {
                Err(format!("nobody serves {}: the kubelet cannot register the driver", left.display()))
            }
            Ok(_) => Ok(format!("{}; without a daemon nothing is registered", folder.display())),
        };
        return Check::of("kubelet", State::Fail, found, cure);
    };
    let kubelet = &status.kubelet;
    let missing =
        [&kubelet.registration_socket, &kubelet.plugin_socket].into_iter().find(|path| !path.exists());
    let found = match (kubelet.registered, missing) {
        (_, Some(path)) => Err(format!("the socket {} is not there", path.display())),
        (true, None) => Ok(format!("registered, calls {}", kubelet.plugin_socket.display())),
        (false, None) => {
            let why = kubelet.refusal.as_ref().map(|why| format!("it refused the driver: {why}"));
            let call = kubelet.last_refused_call.as_ref().map(|call| format!("last refused call: {call}"));
            let said: Vec<_> = ["not registered".to_owned()].into_iter().chain(why).chain(call).collect();
            Err(said.join("; "))
        }
    };
    Check::of("kubelet", State::Fail, found, cure)
}

/// The runtime's side.
pub(super) fn nri(args: &DoctorArgs, status: Option<&Status>) -> Check {
    let cure = "turn NRI on in the runtime (containerd: plugins.'io.containerd.nri.v1.nri'.disable = false), or name its \
                socket with --nri-socket";
    let found = match status {
        None => answers(&args.nri_socket).map(|found| format!("{found} answers; no daemon is connected")),
        Some(status) if status.runtime.connected => {
            Ok(format!("connected by {}", status.runtime.socket.display()))
        }
        Some(status) => {
            let why = status.runtime.last_error.as_deref().unwrap_or("not connected yet");
            Err(format!("{}: {why}", status.runtime.socket.display()))
        }
    };
    Check::of("NRI", State::Fail, found, cure)
}

/// The node's slices.
pub(super) fn slices(status: &Status) -> Check {
    let publishing = &status.publishing;
    let waits = status.parts.iter().find(|part| part.name == "slices").and_then(|part| part.reason.clone());
    let found = match waits {
        None => Ok(format!("{} devices in {} slices", publishing.devices, publishing.slices)),
        Some(why) => Err(format!("{why}; {} attempts failed", publishing.failures)),
    };
    Check::of("slices", State::Fail, found, "the daemon's log says what the API server answered")
}

/// The runtime, as it named itself to the daemon.
pub(super) fn runtime(run_dir: &Path, status: Option<&Status>) -> Check {
    let of_status = status.and_then(|status| {
        Some(RuntimeNote { name: status.runtime.name.clone()?, version: status.runtime.version.clone()? })
    });
    let note = of_status.map_or_else(|| RuntimeNote::read(run_dir), |note| Ok(Some(note)));
    let found = match note {
        Ok(Some(RuntimeNote { name, version })) if name == "containerd" && cannot_start_again(&version) => {
            Err(format!(
                "{name} {version}: after an NRI plugin has refused RunPodSandbox it may not start again (containerd issue 13609)"
            ))
        }
        Ok(Some(note)) => Ok(format!("{} {}", note.name, note.version)),
        Ok(None) => Ok("no daemon has been connected to one since the machine started".to_owned()),
        Err(error) => Err(format!("{}: {error}", run_dir.display())),
    };
    let cure = "containerd 2.2.6, 2.3.3 or later; or no NRI plugin that refuses RunPodSandbox, which this driver never does";
    Check::of("container runtime", State::Warn, found, cure)
}

/// Whether a version of containerd has the fault of its issue 13609: the series 2.0 and 2.1, 2.2 before 2.2.6 and 2.3 before
/// 2.3.3 (pull request 13399).
fn cannot_start_again(version: &str) -> bool {
    let numbers = version.trim_start_matches('v').split(['.', '-', '+']).map(str::parse::<u32>);
    let numbers: Vec<u32> = numbers.map_while(Result::ok).take(3).collect();
    match numbers[..] {
        [2, 0 | 1, ..] => true,
        [2, 2, patch] => patch < 6,
        [2, 3, patch] => patch < 3,
        _ => false,
    }
}

fn answers(socket: &Path) -> Result<String, String> {
    match UnixStream::connect(socket) {
        Ok(_) => Ok(socket.display().to_string()),
        Err(error) => Err(format!("{}: {error}", socket.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_containerd_that_do_not_start_again_are_known() {
        for version in ["2.1.9+unknown", "v2.0.0", "2.2.5", "2.3.0-rc.1"] {
            assert!(cannot_start_again(version), "{version}");
        }
        for version in ["1.7.24~ds1", "2.2.6", "2.3.3", "2.4.0", "3.0.0", "", "unknown"] {
            assert!(!cannot_start_again(version), "{version}");
        }
    }

    #[test]
    fn a_socket_nobody_listens_on_does_not_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nri.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(answers(&path).is_err());
    }
}
