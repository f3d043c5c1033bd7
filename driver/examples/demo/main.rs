//! The main job on one machine without Kubernetes: `cargo xtask demo` runs this.
//!
//! The daemon is the real one, with the real kernel. The demo plays the two sides that a node would have: the
//! kubelet, on the registration and DRA sockets, and the container runtime, on the NRI socket. Run as root.

mod networks;
mod run;
mod story;
#[path = "../../tests/support/mod.rs"]
mod support;
mod two_nodes;

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netferry::claim::ClaimRef;
use story::{indent, say, step};
use support::{
    daemon::{Daemon, Home},
    kubelet::Kubelet,
    netns::NetNs,
    runtime::{Generation, PodSandboxSpec, Runtime},
};

/// The two ends of one cable: what one pod sends arrives at the other.
const LINKS: [&str; 2] = ["nfdemo0", "nfdemo1"];
const PODS: [&str; 2] = ["left", "right"];
const INTERFACE: &str = "net1";

fn main() -> ExitCode {
    let outcome = start();
    if let Err(error) = &outcome {
        let _ = writeln!(io::stderr(), "demo: {error:#}");
    }
    outcome.unwrap_or(ExitCode::FAILURE)
}

fn start() -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "the demo makes links and network namespaces: run it as root");
    let begin = Instant::now();
    let folder = run::folder()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let mut signals = run::signals()?;
        let alone = tokio::select! {
            alone = run::Alone::wait() => alone?,
            signal = run::came(&mut signals) => return Ok((None, Some(signal))),
        };
        if run::sweep_others() > 0 {
            say("what an earlier demo left is taken away");
        }
        let told = tokio::select! {
            told = whole() => told,
            _ = run::came(&mut signals) => Ok(()),
        };
        // A signal that ends a ping as well: the ping's end is no finding.
        let came = tokio::time::timeout(Duration::from_millis(300), run::came(&mut signals)).await.ok();
        if came.is_none() {
            told?;
        }
        anyhow::Ok((Some(alone), came))
    });
    // What blocks a thread ends with the daemons, which the sweep ends.
    runtime.shutdown_timeout(Duration::from_millis(500));
    match &ended {
        // It waited for its turn, and made nothing.
        Ok((None, _)) => drop(std::fs::remove_dir_all(folder)),
        _ => run::remove(&folder),
    }
    let (alone, signal) = ended?;
    drop(alone);
    if let Some(signal) = signal {
        say(&format!("{signal}: everything that the demo made is removed."));
        return Ok(ExitCode::from(128 + u8::try_from(signal as i32)?));
    }
    say(&format!(
        "Done in {:.1} s; links, namespaces, pins and folders are gone.",
        begin.elapsed().as_secs_f32()
    ));
    Ok(ExitCode::SUCCESS)
}

/// The guards take away links, namespaces, daemon, pins and folders, whatever ends it.
async fn whole() -> Result<()> {
    let _cable = Cable::new()?;
    demo().await
}

async fn demo() -> Result<()> {
    let binary = binary()?;
    let pods = [NetNs::new(), NetNs::new()];
    let mut home = Home::new();
    let rule = r#"device.attributes["netferry.dev"].ifName.startsWith("nfdemo")"#;
    home.arguments = vec!["--publish".to_owned(), rule.to_owned()];
    home.write_object("objects.yaml", &objects());

    step("A node with two network links");
    let before = Cable::look()?;
    indent(&ip(&["-brief", "link", "show", "type", "veth"])?);

    step("The daemon starts and registers with kubelet and container runtime");
    let runtime = Runtime::listen(home.nri_socket(), Generation::OwnCalls)?;
    let kubelet = Kubelet::new(&home.kubelet_root());
    let mut daemon = home.start(&binary);
    let driver = kubelet.wait_for_driver(netferry::DRIVER_NAME).await;
    let mut plugin = runtime.accept().await?;
    daemon = ready(daemon).await?;
    say(&format!("kubelet: registered {}, calls {}", driver.name, driver.service));
    say(&format!("runtime: registered NRI plugin {}", plugin.registered.plugin_name));

    step("It publishes what the rule selects, and says why the rest is not");
    indent(&run(&binary, &["devices", "--publish", rule])?);

    step("What a person writes: a claim (and a scheduler has allocated, which is not shown)");
    indent(claimed(&claim_text(0)));

    step("kubelet: NodePrepareResources, before the pods' sandboxes exist");
    let claims = PODS.map(claim);
    for (claim, prepared) in driver.prepare(&claims).await? {
        let devices = prepared.map_err(anyhow::Error::msg).with_context(|| format!("claim {claim}"))?;
        let names: Vec<_> = devices.iter().map(|device| device.device_name.as_str()).collect();
        say(&format!("claim {claim}: prepared {}", names.join(", ")));
    }

    step("runtime: RunPodSandbox and CreateContainer, and the links are in the pods");
    let sandboxes: Vec<_> = PODS.iter().zip(&pods).map(|(pod, netns)| sandbox(pod, &netns.path)).collect();
    for sandbox in &sandboxes {
        let began = Instant::now();
        networks::start(&plugin, sandbox).await?;
        say(&format!("pod demo/{}: attached in {:.1} ms", sandbox.name, began.elapsed().as_secs_f64() * 1e3));
    }
    indent(&pods[0].ip(&format!("-brief address show {INTERFACE}")));
    indent(&programs(&home)?);

    step("The pods reach each other");
    indent(&ping(&pods[0], "10.77.0.2", &[])?);
    indent(&ping(&pods[0], "fd77::2", &[])?);

    step("A pod that takes another's address is stopped at its own link");
    pods[0].ip(&format!("address add 10.77.0.66/24 dev {INTERFACE}"));
    if ping(&pods[0], "10.77.0.2", &["-I", "10.77.0.66"]).is_ok() {
        bail!("a spoofed source got through");
    }
    say("ping from 10.77.0.66: no answer");
    let bpffs = home.bpffs().to_str().context("UTF-8 path")?;
    let state = home.state_dir();
    let state = state.to_str().context("UTF-8 path")?;
    let held = run(&binary, &["pods", "--bpffs", bpffs, "--state-dir", state])?;
    indent(&held);
    ensure!(held.contains("arp_sender=") || held.contains("source_ipv4="), "the drops were not counted");

    step("The pods stop, and the links are home as they were");
    for sandbox in &sandboxes {
        plugin.stop_pod_sandbox(sandbox).await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        plugin.remove_pod_sandbox(sandbox).await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    }
    driver.unprepare(&claims).await?;
    let after = Cable::look()?;
    indent(&ip(&["-brief", "link", "show", "type", "veth"])?);
    ensure!(before == after, "a link is not as it was:\nbefore: {before}\nafter: {after}");
    say("`ip -j -d address` of both links: same as before");

    networks::show(&home, &binary, &driver, &plugin).await?;

    let status = tokio::task::spawn_blocking(move || daemon.stop()).await?;
    ensure!(status.success(), "the daemon ended with {status}");
    plugin.closed().await;

    two_nodes::show(&binary).await
}

/// Both links, with addresses, as a machine reads them.
struct Cable;

impl Cable {
    fn new() -> Result<Self> {
        let [a, b] = LINKS;
        ip(&["link", "add", a, "type", "veth", "peer", "name", b])?;
        let cable = Self;
        for link in LINKS {
            ip(&["link", "set", link, "addrgenmode", "none"])?;
            ip(&["link", "set", link, "up"])?;
        }
        ip(&["address", "add", "192.0.2.7/24", "dev", a])?;
        Ok(cable)
    }

    fn look() -> Result<String> {
        LINKS.iter().map(|link| ip(&["-j", "-d", "address", "show", "dev", link])).collect()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // One end takes the other along. Both fail if a pod took them down with it.
        for link in LINKS {
            let _ = ip(&["link", "delete", link]);
        }
    }
}

fn objects() -> String {
    let class = r#"
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: netferry.dev}
spec:
  selectors:
  - cel: {expression: 'device.driver == "netferry.dev"'}
"#;
    [class.to_owned(), claim_text(0), claim_text(1)].concat()
}

/// Without what a scheduler adds.
fn claimed(text: &str) -> &str {
    let text = text.split("status:").next().unwrap_or(text);
    text.trim_start_matches("---\n")
}

fn claim_text(index: usize) -> String {
    let (pod, link, host) = (PODS[index], LINKS[index], index + 1);
    format!(
        r#"---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {{namespace: demo, name: {pod}, uid: claim-{pod}}}
spec:
  devices:
    requests:
    - name: nic
      exactly:
        deviceClassName: netferry.dev
        selectors:
        - cel: {{expression: 'device.attributes["netferry.dev"].ifName == "{link}"'}}
    config:
    - requests: [nic]
      opaque:
        driver: netferry.dev
        parameters:
          apiVersion: netferry.dev/v1alpha1
          kind: InterfaceConfig
          name: {INTERFACE}
          addresses: [10.77.0.{host}/24, "fd77::{host}/64"]
          mtu: 1400
status:
  reservedFor:
  - {{resource: pods, name: {pod}, uid: pod-{pod}}}
"#
    )
}

fn claim(pod: &str) -> ClaimRef {
    ClaimRef { namespace: "demo".into(), name: pod.into(), uid: format!("claim-{pod}") }
}

fn sandbox(pod: &str, netns: &Path) -> PodSandboxSpec {
    PodSandboxSpec::new("demo", pod, &format!("pod-{pod}"), Some(netns))
}

/// The daemon's binary, built beside the folder of this example.
fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).context("the example has no folder")?;
    let binary = folder.join("netferry");
    ensure!(binary.exists(), "{} is missing: cargo build --bin netferry", binary.display());
    Ok(binary)
}

async fn ready(mut daemon: Daemon) -> Result<Daemon> {
    Ok(tokio::task::spawn_blocking(move || {
        daemon.wait_ready();
        daemon
    })
    .await?)
}

fn programs(home: &Home) -> Result<String> {
    let pins = home.bpffs().join("v1/links");
    let mut lines = String::new();
    for pin in story::files(&pins)? {
        let path = pin.to_str().context("UTF-8 path")?;
        let shown = run(Path::new("bpftool"), &["-j", "link", "show", "pinned", path])?;
        let link: serde_json::Value = serde_json::from_str(&shown)?;
        let id = link["prog_id"].to_string();
        let shown = run(Path::new("bpftool"), &["-j", "prog", "show", "id", &id])?;
        let program: serde_json::Value = serde_json::from_str(&shown)?;
        let _ = writeln!(lines, "{}: program {} ({id})", pin.display(), program["name"]);
    }
    ensure!(!lines.is_empty(), "no program is pinned below {}", pins.display());
    Ok(lines)
}

fn ping(from: &NetNs, to: &str, more: &[&str]) -> Result<String> {
    let command = format!("ping -q -c 3 -i 0.01 -W 1 {} {to}", more.join(" "));
    from.try_exec(&command).map_err(anyhow::Error::msg).map(|out| story::middle(&out))
}

fn ip(words: &[&str]) -> Result<String> {
    run(Path::new("ip"), words)
}

fn run(program: &Path, words: &[&str]) -> Result<String> {
    let out = Command::new(program)
        .args(words)
        .process_group(0)
        .output()
        .with_context(|| program.display().to_string())?;
    ensure!(
        out.status.success(),
        "{} {}: {}",
        program.display(),
        words.join(" "),
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(String::from_utf8(out.stdout)?)
}
