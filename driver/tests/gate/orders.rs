//! Random orders of what happens to sandboxes, on one containerd.
//!
//! Three orders of each series in a plain run; `NETFERRY_RUNTIME_ORDERS` sets another number, `NETFERRY_SEED` the first
//! seed.

use std::{
    env,
    hash::{BuildHasher as _, RandomState},
};

use super::{
    Cable, ClaimRef, Node, RunningPod, Series, able, create, create_soon, end, inside, number, put_claim,
    spec, wait_ready,
};

const PODS: usize = 3;
const STEPS: usize = 12;

/// A small generator of the splitmix family: the same orders for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}

struct Pod {
    name: String,
    claims: Vec<ClaimRef>,
    running: Option<RunningPod>,
    dead: Vec<RunningPod>,
    attempts: u32,
}

async fn step(node: &mut Node, pods: &mut [Pod], random: &mut Random) -> String {
    let chosen = random.below(PODS);
    let pod = &mut pods[chosen];
    match random.below(9) {
        0..=2 if pod.running.is_none() => {
            let spec = super::PodSpec { attempt: pod.attempts, ..spec(&pod.name) };
            pod.attempts += 1;
            pod.running = Some(node.containerd.run(&spec).await.unwrap());
            format!("run {chosen}")
        }
        0..=1 => {
            let Some(running) = pod.running.take() else { unreachable!("the arm above") };
            node.containerd.kill_pause(&running).await.unwrap();
            node.containerd.stop_pod(&running.id).await.unwrap();
            let spec = super::PodSpec { attempt: pod.attempts, ..running.spec.clone() };
            pod.attempts += 1;
            pod.running = Some(node.containerd.run(&spec).await.unwrap());
            pod.dead.push(running);
            format!("kill pause of {chosen}")
        }
        2 => {
            let Some(running) = pod.running.take() else { unreachable!("the arm above") };
            node.containerd.stop_pod(&running.id).await.unwrap();
            pod.dead.push(running);
            format!("stop {chosen}")
        }
        3 => {
            for dead in std::mem::take(&mut pod.dead) {
                node.containerd.remove_pod(&dead.id).await.unwrap();
            }
            format!("remove dead of {chosen}")
        }
        4 => {
            if let Some(running) = &pod.running {
                let _ = create(node, running, 0).await;
            }
            format!("container in {chosen}")
        }
        5 if node.daemon.is_some() => {
            node.daemon.take().unwrap().kill();
            "daemon killed".to_owned()
        }
        5 | 6 => {
            if node.daemon.is_none() {
                node.start_daemon();
            }
            "daemon started".to_owned()
        }
        7 => {
            node.containerd.restart().await.unwrap();
            "runtime restarted".to_owned()
        }
        _ => {
            node.containerd.crash().await.unwrap();
            "runtime killed".to_owned()
        }
    }
}

async fn any_order_ends_well(series: Series) {
    if !able("orders", series) {
        return;
    }
    let numbers: Vec<u8> =
        (0..PODS * 2).map(|count| number(series, 20 + u8::try_from(count).unwrap())).collect();
    let cables: Vec<Cable> = numbers.iter().map(|number| Cable::new(*number)).collect();
    let all: Vec<&Cable> = cables.iter().collect();
    let mut node = Node::start(series, &all).await;
    let looks: Vec<String> = cables.iter().map(Cable::look).collect();
    let number =
        |name: &str, default: u64| env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let first = number("NETFERRY_SEED", RandomState::new().hash_one(0) % 1_000_000);
    let rounds = number("NETFERRY_RUNTIME_ORDERS", 3);
    for seed in first..first + rounds {
        let mut random = Random(seed);
        let mut pods: Vec<Pod> = Vec::new();
        for count in 0..PODS {
            let name = format!("r{seed}-{count}");
            let claims: Vec<ClaimRef> = (0..2)
                .map(|nth| {
                    let which = count * 2 + nth;
                    let (claim, interface) = (format!("{name}-{nth}"), format!("net{}", nth + 1));
                    put_claim(&node, &claim, &[&name], (&cables[which], numbers[which]), &interface, true)
                })
                .collect();
            for claim in &claims {
                node.prepare(claim).await.unwrap();
            }
            pods.push(Pod { name, claims, running: None, dead: Vec::new(), attempts: 0 });
        }
        let mut steps = Vec::new();
        for _ in 0..STEPS {
            steps.push(step(&mut node, &mut pods, &mut random).await);
        }
        let order = format!("seed {seed}: {}", steps.join(", "));
        if node.daemon.is_none() {
            node.start_daemon();
        }
        wait_ready(&mut node);
        for (count, pod) in pods.iter().enumerate() {
            if let Some(running) = &pod.running {
                create_soon(&node, running, 1).await.unwrap_or_else(|why| panic!("{order}: {why}"));
                let links = inside(running).links();
                assert!(
                    ["net1", "net2"].iter().all(|name| links.contains(&(*name).to_owned())),
                    "{order}: {links:?}"
                );
            } else {
                super::until(&order, || (0..2).all(|nth| cables[count * 2 + nth].is_home())).await;
            }
        }
        let running = pods.iter().filter(|pod| pod.running.is_some()).count();
        super::until(&order, || node.home.holds().len() == running).await;
        let ending: Vec<&RunningPod> =
            pods.iter().flat_map(|pod| pod.running.iter().chain(&pod.dead)).collect();
        let claims: Vec<ClaimRef> = pods.iter().flat_map(|pod| pod.claims.clone()).collect();
        end(&mut node, &ending, &claims, &all).await;
        let now: Vec<String> = cables.iter().map(Cable::look).collect();
        assert_eq!(now, looks, "{order}");
    }
    eprintln!("{rounds} orders from seed {first} on {series:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_ends_well_on_containerd_2_1() {
    any_order_ends_well(Series::V2_1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_ends_well_on_containerd_1_7() {
    any_order_ends_well(Series::V1_7).await;
}
