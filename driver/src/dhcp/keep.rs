//! Keeps the leases of prepared claims: renews them, and takes an address away that is not the port's any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    book::{Book, Entry, Record},
    client::{Client, ClientError, Extend, Pace},
    lease::{Lease, Phase},
    leases::DhcpLeases,
};
use crate::{
    attach::Attacher,
    claim::{Checkpoint, ClaimRef, InterfaceKey, PodRef, Step, store::Store},
    cluster::{Event, EventType, Subject},
    metrics::DhcpOutcome,
    status::Reporter,
    telemetry::chain,
};

/// How often leases are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often an address that was lost is asked for again.
const REGAIN: SignedDuration = SignedDuration::from_secs(30);
/// How many servers are waited for at a time.
const AT_ONCE: usize = 16;

/// What is to be done about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Ask whether it may go on, one way after the other.
    Extend(&'static [Extend]),
    /// It is over.
    Over,
    /// It is lost, which the port does not know yet.
    Close,
    /// It is lost: ask for the same address again.
    Regain,
}

/// What is to be done about a lease now: pure. `attached`: its port is in a pod; `closed`: the port knows that it is lost;
/// `next`: when to ask again, after a try that nobody answered.
#[must_use]
pub fn due(
    entry: &Entry,
    attached: bool,
    closed: bool,
    next: Option<Timestamp>,
    now: Timestamp,
) -> Option<Due> {
    let lease = entry.lease.as_ref()?;
    let wait = next.is_some_and(|next| now < next);
    if entry.lost.is_some() {
        return if closed { (!wait).then_some(Due::Regain) } else { Some(Due::Close) };
    }
    let ways: &[Extend] = match lease.phase(now) {
        Phase::Bound => return None,
        // One that could not be written down as lost is told once.
        Phase::Expired => return (!closed).then_some(Due::Over),
        // What is sent to an address that is on no interface comes nowhere.
        _ if !attached => &[Extend::Confirm],
        Phase::Renewing => &[Extend::Renew],
        // Servers answer the first to the address, and the second to everybody.
        Phase::Rebinding => &[Extend::Rebind, Extend::Confirm],
    };
    (!wait).then_some(Due::Extend(ways))
}

/// Whether nothing of a record is leased any more.
fn over(record: &Record, now: Timestamp) -> bool {
    let lives = |entry: &Entry| entry.lease.as_ref().is_some_and(|lease| lease.phase(now) != Phase::Expired);
    !record.entries.iter().any(lives)
}

type Which = (String, InterfaceKey);

/// See the module.
pub struct Keeper {
    /// The leases.
    leases: Arc<DhcpLeases>,
    /// The claims that are prepared.
    store: Arc<Store>,
    /// Takes addresses from ports.
    attacher: Arc<Attacher>,
    /// Tells the cluster.
    reporter: Reporter,
}

#[derive(Debug, Default)]
struct Seen {
    /// When to ask again.
    next: BTreeMap<Which, Timestamp>,
    /// Ports that know that they have no address.
    closed: BTreeSet<Which>,
}

/// What became of one.
enum Done {
    Well,
    Closed,
    /// Try again then.
    Again(Timestamp),
}

impl Keeper {
    /// Of the leases of claims that are in `store`.
    #[must_use]
    pub fn new(
        leases: &Arc<DhcpLeases>,
        store: &Arc<Store>,
        attacher: &Arc<Attacher>,
        reporter: &Reporter,
    ) -> Self {
        Self {
            leases: Arc::clone(leases),
            store: Arc::clone(store),
            attacher: Arc::clone(attacher),
            reporter: reporter.clone(),
        }
    }

    /// Look every second until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = Seen::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.look(&mut seen) => {}
            }
        }
    }

    async fn look(&self, seen: &mut Seen) {
        let now = Timestamp::now();
        let (mut all, mut work) = (BTreeSet::new(), Vec::new());
        for record in self.leases.book.all() {
            let Some(checkpoint) = self.store.get(&record.claim.uid) else {
                self.forget(&record, now).await;
                continue;
            };
            for entry in record.entries {
                let which = (record.claim.uid.clone(), entry.key());
                let attached = pod(&checkpoint, &which.1).is_some();
                let closed = seen.closed.contains(&which);
                if let Some(due) = due(&entry, attached, closed, seen.next.get(&which).copied(), now) {
                    work.push((which.clone(), record.claim.clone(), entry, due));
                }
                all.insert(which);
            }
        }
        seen.next.retain(|which, _| all.contains(which));
        seen.closed.retain(|which| all.contains(which));
        let mut done = stream::iter(work)
            .map(|(which, claim, entry, due)| async move { (which, self.see_to(&claim, &entry, due).await) })
            .buffer_unordered(AT_ONCE);
        while let Some((which, done)) = done.next().await {
            match done {
                Done::Well => {
                    seen.next.remove(&which);
                    seen.closed.remove(&which);
                }
                Done::Closed => drop(seen.closed.insert(which)),
                Done::Again(at) => drop(seen.next.insert(which, at)),
            }
        }
    }

    /// Without a checkpoint a prepare is on its way, or was cut off: it is asked again, or unprepared. If neither comes, what
    /// it leased has ended some day.
    async fn forget(&self, record: &Record, now: Timestamp) {
        let uid = record.claim.uid.clone();
        // A prepare has the turn as long as it asks.
        let Some(_turn) = self.leases.turns.try_take(&uid) else { return };
        if self.store.get(&uid).is_some()
            || self.leases.book.get(&uid).as_ref() != Some(record)
            || !over(record, now)
        {
            return;
        }
        info!(claim = %record.claim, "forgets what a prepare that was cut off asked for");
        if let Err(why) = self.leases.write(move |book| book.remove(&uid)).await {
            warn!(claim = %record.claim, "{why}");
        }
    }

    async fn see_to(&self, claim: &ClaimRef, entry: &Entry, due: Due) -> Done {
        let _turn = self.leases.turns.take(&claim.uid).await;
        let key = entry.key();
        let there = self.leases.book.get(&claim.uid).is_some_and(|record| record.entries.contains(entry));
        let (Some(lease), true) = (&entry.lease, there) else { return Done::Well };
        match due {
            Due::Over => {
                self.lose(claim, entry, "the lease has ended, and no server let it go on".to_owned()).await
            }
            Due::Close => self.close(claim, entry).await,
            Due::Extend(ways) => match self.extend(entry, lease, ways).await {
                Ok(lease) => {
                    self.leases.metrics.dhcp(DhcpOutcome::Renewed);
                    info!(%claim, network = entry.network.name, address = %lease.address, "renewed a lease");
                    self.keep(claim, key, lease).await
                }
                Err(error @ ClientError::Refused { .. }) => self.lose(claim, entry, chain(&error)).await,
                Err(error) => {
                    self.leases.metrics.dhcp(DhcpOutcome::Failed);
                    let again = lease.again(Timestamp::now());
                    let (network, address) = (&entry.network.name, lease.address);
                    warn!(%claim, network, %address, %again, "a lease is not renewed: {}", chain(&error));
                    Done::Again(again)
                }
            },
            Due::Regain => match self.extend(entry, lease, &[Extend::Confirm]).await {
                Ok(lease) => self.regain(claim, entry, lease).await,
                Err(_) => Done::Again(Timestamp::now().saturating_add(REGAIN).unwrap_or(Timestamp::MAX)),
            },
        }
    }

    async fn extend(&self, entry: &Entry, lease: &Lease, ways: &[Extend]) -> Result<Lease, ClientError> {
        let wire = self.leases.wire_of(entry);
        let client = Client::new(&wire, entry.mac)?;
        let pace = Pace { waits: vec![Duration::from_secs(1); 2] };
        let mut result = client.extend(lease, *ways.first().unwrap_or(&Extend::Confirm), &pace).await;
        for way in ways.iter().skip(1) {
            if !matches!(result, Err(ClientError::NoAnswer { .. })) {
                break;
            }
            result = client.extend(lease, *way, &pace).await;
        }
        result
    }

    async fn keep(&self, claim: &ClaimRef, key: InterfaceKey, lease: Lease) -> Done {
        let uid = claim.uid.clone();
        let kept = move |book: &Book| book.update(&uid, &key, |entry| entry.lease = Some(lease));
        match self.leases.write(kept).await {
            Ok(()) => Done::Well,
            // It is renewed again, which is harmless.
            Err(why) => {
                warn!(%claim, "{why}");
                Done::Well
            }
        }
    }

    async fn lose(&self, claim: &ClaimRef, entry: &Entry, why: String) -> Done {
        self.leases.metrics.dhcp(DhcpOutcome::Lost);
        let mut entry = entry.clone();
        entry.lost = Some(why.clone());
        let (uid, key) = (claim.uid.clone(), entry.key());
        let lost =
            self.leases.write(move |book| book.update(&uid, &key, |entry| entry.lost = Some(why))).await;
        // The port goes without its address all the same.
        if let Err(error) = lost {
            warn!(%claim, "{error}");
        }
        self.close(claim, &entry).await
    }

    async fn close(&self, claim: &ClaimRef, entry: &Entry) -> Done {
        let Some(address) = entry.lease.as_ref().map(|lease| lease.address) else { return Done::Well };
        let (network, why) = (&entry.network.name, entry.lost.as_deref().unwrap_or_default());
        if let Err(error) = self.attacher.take_addresses(claim, &entry.key(), address.into()).await {
            warn!(%claim, network, %address, "the port is not closed: {}; trying again", chain(&error));
            return Done::Again(Timestamp::now());
        }
        warn!(%claim, network, %address, "the address is lost, and the port is closed: {why}");
        let note = format!("address {address} on network {network} is lost, and its port is closed: {why}");
        self.tell(claim, &entry.key(), EventType::Warning, "LeaseLost", &note);
        Done::Closed
    }

    async fn regain(&self, claim: &ClaimRef, entry: &Entry, lease: Lease) -> Done {
        let (uid, key, network) = (claim.uid.clone(), entry.key(), &entry.network.name);
        let known = self.leases.networks.of_uid(&entry.network.uid);
        let prefix = known.and_then(|network| network.spec.subnets.first().map(ipnetwork::IpNetwork::prefix));
        let Some(address) = prefix.and_then(|prefix| lease.network(prefix)) else { return Done::Closed };
        let of = key.clone();
        let written = self.leases.write(move |book| {
            book.update(&uid, &of, |entry| {
                entry.lost = None;
                entry.lease = Some(lease);
            })
        });
        if let Err(error) = written.await {
            warn!(%claim, "{error}");
            return Done::Closed;
        }
        if let Err(error) = self.attacher.give_address(claim, &key, address).await {
            warn!(%claim, network, %address, "the port is not opened again: {}", chain(&error));
        }
        self.leases.metrics.dhcp(DhcpOutcome::Regained);
        info!(%claim, network, %address, "the address is the port's again");
        let note = format!("address {address} on network {network} is its port's again");
        self.tell(claim, &key, EventType::Normal, "LeaseRegained", &note);
        Done::Well
    }

    fn tell(
        &self,
        claim: &ClaimRef,
        key: &InterfaceKey,
        event_type: EventType,
        reason: &'static str,
        note: &str,
    ) {
        let pod = self.store.get(&claim.uid).and_then(|checkpoint| pod(&checkpoint, key));
        for subject in [Some(Subject::Claim(claim.clone())), pod.map(Subject::Pod)].into_iter().flatten() {
            let note = note.to_owned();
            self.reporter.event(Event { subject, event_type, reason, action: "KeepLease", note });
        }
        self.reporter.claim_changed(claim);
    }
}

/// The pod that an interface is attached to.
fn pod(checkpoint: &Checkpoint, key: &InterfaceKey) -> Option<PodRef> {
    let record = checkpoint.interfaces.iter().find(|interface| interface.plan.key() == *key)?;
    let attachment = record.attachment.as_ref().filter(|attachment| attachment.step == Step::Attached)?;
    Some(attachment.sandbox.pod.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dhcp::lease::Times, link::MacAddr, network::NetworkRef};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn entry(lost: bool) -> Entry {
        Entry {
            request: "port".into(),
            device: "port-blue".into(),
            share_id: None,
            network: NetworkRef::default(),
            link: "eth1".into(),
            vlan: 0,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            lease: Some(Lease {
                address: [10, 9, 0, 7].into(),
                prefix: None,
                router: None,
                mtu: None,
                server: [10, 9, 0, 1].into(),
                server_mac: MacAddr([2, 0, 0, 0, 0, 9]),
                granted: at(0),
                times: Some(Times { renew: at(60), rebind: at(105), expires: at(120) }),
            }),
            lost: lost.then(|| "refused".to_owned()),
        }
    }

    #[test]
    fn a_lease_is_asked_for_as_its_phase_and_its_port_say() {
        let of = |attached, second| due(&entry(false), attached, false, None, at(second));
        assert_eq!([of(true, 59), of(false, 59)], [None, None]);
        assert_eq!(of(true, 60), Some(Due::Extend(&[Extend::Renew])));
        assert_eq!(of(true, 110), Some(Due::Extend(&[Extend::Rebind, Extend::Confirm])));
        assert_eq!([of(false, 60), of(false, 110)], [Some(Due::Extend(&[Extend::Confirm])); 2]);
        assert_eq!([of(true, 120), of(false, 120)], [Some(Due::Over); 2]);
        assert_eq!(due(&entry(false), true, true, None, at(120)), None, "it is closed");
    }

    #[test]
    fn waiting_never_outlives_the_lease() {
        let of = |second| due(&entry(false), true, false, Some(at(500)), at(second));
        assert_eq!([of(60), of(119), of(120)], [None, None, Some(Due::Over)]);
    }

    #[test]
    fn a_lost_one_is_closed_first_and_then_asked_for_again() {
        let of = |closed, next| due(&entry(true), true, closed, next, at(61));
        assert_eq!(of(false, Some(at(90))), Some(Due::Close));
        assert_eq!(of(true, Some(at(90))), None);
        assert_eq!(of(true, None), Some(Due::Regain));
        let asked = Entry { lease: None, ..entry(false) };
        let record = |entries: &[&Entry]| Record {
            claim: ClaimRef { namespace: "a".into(), name: "b".into(), uid: "c".into() },
            entries: entries.iter().map(|entry| (*entry).clone()).collect(),
        };
        assert!(over(&record(&[&asked]), at(60)) && over(&record(&[&asked, &entry(false)]), at(120)));
        assert!(!over(&record(&[&asked, &entry(false)]), at(119)));
        assert_eq!(due(&asked, false, false, None, at(500)), None, "what is asked for is the prepare's");
    }
}
