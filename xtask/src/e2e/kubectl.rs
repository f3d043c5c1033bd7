//! kubectl as a child process: a kubeconfig of any kind works, and nothing heavy joins the build of the tasks.

use std::{
    io::{Read, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::interrupt::interrupted;

/// How long an ordinary call may take.
pub(crate) const CALL: Duration = Duration::from_secs(30);

/// A cluster, as kubectl reaches it.
#[derive(Clone)]
pub(crate) struct Kubectl {
    /// The program.
    pub(crate) program: PathBuf,
    /// Its kubeconfig; without one kubectl's own default.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Whether calls go on after Ctrl-C, as those that remove things must.
    pub(crate) closing: bool,
}

impl Kubectl {
    /// The same cluster, for the removal of what was made.
    pub(crate) fn closing(&self) -> Self {
        Self { closing: true, ..self.clone() }
    }

    /// Runs kubectl and returns its standard output; an error has what it wrote to standard error.
    pub(crate) fn call(&self, arguments: &[&str], input: Option<&str>, limit: Duration) -> Result<String> {
        let mut command = Command::new(&self.program);
        if let Some(file) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(file);
        }
        let mut child = command
            .args(arguments)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let output = reader(child.stdout.take());
        let errors = reader(child.stderr.take());
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
            // A child that ends early says why on its standard error.
            let _ = pipe.write_all(input.as_bytes());
        }
        let success = self.end(&mut child, arguments, limit)?;
        let output = output.join().map_err(|_| anyhow!("kubectl's output was not read"))?;
        if success {
            return Ok(output);
        }
        let errors = errors.join().unwrap_or_default();
        let said = [errors.trim(), output.trim()].join(" ");
        bail!("kubectl {}: {}", brief(arguments), said.trim())
    }

    fn end(&self, child: &mut Child, arguments: &[&str], limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait().context("kubectl")? {
                return Ok(status.success());
            }
            let stop = interrupted() && !self.closing;
            if stop || Instant::now() >= end {
                // It has ended meanwhile, or it is ended now.
                let _ = child.kill();
                let _ = child.wait();
                let why =
                    if stop { "interrupted".into() } else { format!("no answer in {} s", limit.as_secs()) };
                bail!("kubectl {}: {why}", brief(arguments));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs kubectl within the usual limit.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        self.call(arguments, None, CALL)
    }

    /// `get` of objects as JSON.
    pub(crate) fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl's JSON")
    }

    /// The items of a list.
    pub(crate) fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let mut list = self.get(arguments)?;
        Ok(match list["items"].take() {
            Value::Array(items) => items,
            _ => vec![list],
        })
    }

    /// Server-side or client-side apply of one object or a List.
    pub(crate) fn apply(&self, object: &Value) -> Result<()> {
        self.call(&["apply", "-f", "-"], Some(&object.to_string()), CALL * 2).map(drop)
    }

    /// Runs a shell's command in a pod, and returns its standard output.
    pub(crate) fn exec(&self, namespace: &str, pod: &str, script: &str, limit: Duration) -> Result<String> {
        self.call(&["exec", "-n", namespace, pod, "--", "sh", "-c", script], None, limit)
    }
}

/// The command without long scripts.
fn brief(arguments: &[&str]) -> String {
    let mut line = arguments.join(" ").replace('\n', " ");
    if line.len() > 120 {
        line = line.chars().take(120).collect::<String>() + "…";
    }
    line
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What came before an error is all that there is.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<String> {
        let kubectl = Kubectl { program: "/bin/sh".into(), kubeconfig: None, closing: false };
        kubectl.call(&["-c", script], Some("asked"), limit)
    }

    #[test]
    fn output_input_and_errors_go_through() {
        assert_eq!(shell("cat", CALL).unwrap(), "asked");
        let error = shell("echo refused >&2; exit 3", CALL).unwrap_err().to_string();
        assert!(error.contains("refused"), "{error}");
    }

    #[test]
    fn a_call_that_does_not_end_is_ended() {
        let error = shell("exec sleep 1000", Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("no answer"), "{error}");
    }
}
