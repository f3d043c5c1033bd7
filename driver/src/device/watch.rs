//! Keeps the inventory current: netlink events, debounced, and a timed resync.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Inventory,
    discover::join,
    keep::{Held, Keep},
    management::Management,
    netlink::{self, DumpError},
    sysfs::Sysfs,
};
use crate::link::kernel::event_socket;

/// Receive buffer of the event socket in bytes: some thousand events, more only where `rmem_max` allows it.
const RECEIVE_BUFFER: usize = 1 << 20;

/// `RTM_NEWROUTE` and `RTM_DELROUTE` (`linux/rtnetlink.h`).
const ROUTE_MESSAGES: [u16; 2] = [24, 25];

/// How the inventory is kept.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// Where sysfs is mounted.
    pub sysfs: Sysfs,
    /// A rebuild waits until no event has come for this long …
    pub quiet: Duration,
    /// … but no longer than this after the first event.
    pub longest: Duration,
    /// A rebuild without an event: sysfs sends none.
    pub resync: Duration,
    /// Directory for [`super::keep::FILE_NAME`].
    pub state_dir: Option<PathBuf>,
    /// Addresses by which the node is reached: their links are not movable. A change rebuilds.
    pub management: watch::Receiver<Management>,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            sysfs: Sysfs::default(),
            quiet: Duration::from_millis(200),
            longest: Duration::from_secs(2),
            resync: Duration::from_mins(1),
            state_dir: None,
            management: watch::channel(Management::default()).1,
        }
    }
}

/// Counters for `/metrics`.
#[derive(Debug, Default)]
pub struct WatchStats {
    /// Relevant netlink datagrams received.
    pub events: AtomicU64,
    /// Times the kernel dropped events because the socket was full (`ENOBUFS`); each led to a rebuild.
    pub overruns: AtomicU64,
    /// Inventories built.
    pub rebuilds: AtomicU64,
    /// Rebuilds that failed; the inventory before them stayed.
    pub failures: AtomicU64,
}

/// Discovery could not start.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// No event socket.
    #[error("cannot listen to the kernel's link events")]
    Events(#[source] io::Error),
    /// The first inventory failed.
    #[error(transparent)]
    Dump(#[from] DumpError),
}

/// A running watch.
#[derive(Clone, Debug)]
pub struct Watcher {
    /// The inventory; a change is sent only when it differs.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// Counters.
    pub stats: Arc<WatchStats>,
    refresh: Arc<Notify>,
    settled: Arc<Notify>,
}

impl Watcher {
    /// Wakes one waiter each time the links, addresses or default routes of the host have changed and come to rest.
    #[must_use]
    pub fn settled(&self) -> Arc<Notify> {
        Arc::clone(&self.settled)
    }

    /// Rebuild soon: the set of held devices has changed.
    pub fn refresh(&self) {
        self.refresh.notify_one();
    }
}

/// Watch the links of the calling thread's network namespace until `shutdown`. Returns with the first
/// inventory complete, so that nobody ever publishes an empty one by mistake.
pub async fn start(
    options: WatchOptions,
    held: Arc<dyn Held>,
    shutdown: CancellationToken,
) -> Result<Watcher, WatchError> {
    // Listening before the first dump: what changes between the two is not lost.
    let events = Events::open().map_err(WatchError::Events)?;
    let stats = Arc::new(WatchStats::default());
    let refresh = Arc::new(Notify::new());
    let mut builder = Builder {
        sysfs: options.sysfs.clone(),
        keep: Keep::open(options.state_dir.clone()),
        held,
        stats: Arc::clone(&stats),
        management: options.management.clone(),
        unreached: BTreeMap::new(),
    };
    let first = builder.build().await?;
    let (sender, inventory) = watch::channel(Arc::new(first));
    let settled = Arc::new(Notify::new());
    let watcher = Watcher {
        inventory,
        stats: Arc::clone(&stats),
        refresh: Arc::clone(&refresh),
        settled: Arc::clone(&settled),
    };
    let run = Run { options, events: Some(events), builder, sender, refresh, settled, stats };
    tokio::spawn(async move {
        tokio::select! {
            () = run.forever() => {}
            () = shutdown.cancelled() => {}
        }
    });
    Ok(watcher)
}

struct Builder {
    sysfs: Sysfs,
    keep: Keep,
    held: Arc<dyn Held>,
    stats: Arc<WatchStats>,
    management: watch::Receiver<Management>,
    /// What was said of addresses that no way leads to.
    unreached: BTreeMap<IpAddr, String>,
}

impl Builder {
    async fn build(&mut self) -> Result<Inventory, DumpError> {
        // A device can be taken or come home during the dump: what is held before or after it is kept.
        let mut held = self.held.held();
        let management = self.management.borrow_and_update().clone();
        let facts = netlink::dump(&management.api_servers).await?;
        for (address, why) in facts.unreached.iter().filter(|it| self.unreached.get(it.0) != Some(it.1)) {
            warn!(%address, "through which link the API server is reached is not known: {why}");
        }
        self.unreached.clone_from(&facts.unreached);
        let sysfs = self.sysfs.clone();
        // Reading the speed takes the kernel's RTNL lock, and saving waits for the disk.
        let fresh = blocking(move || join(&facts, &management, |ifname| sysfs.facts(ifname))).await;
        held.extend(self.held.held());
        let inventory = self.keep.merge(fresh, &held);
        let mut keep = std::mem::take(&mut self.keep);
        let (keep, saved) = blocking(move || {
            let saved = keep.save();
            (keep, saved)
        })
        .await;
        self.keep = keep;
        if let Err(error) = saved {
            warn!(%error, "the inventory cannot be saved: held devices would not survive a restart");
        }
        self.stats.rebuilds.fetch_add(1, Ordering::Relaxed);
        Ok(inventory)
    }
}

/// Run `work` on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Only while the runtime shuts down: this task is about to be dropped as well.
        Err(_) => std::future::pending().await,
    }
}

struct Run {
    options: WatchOptions,
    /// `None` after an error, until it can be opened again.
    events: Option<Events>,
    builder: Builder,
    sender: watch::Sender<Arc<Inventory>>,
    refresh: Arc<Notify>,
    settled: Arc<Notify>,
    stats: Arc<WatchStats>,
}

impl Run {
    async fn forever(mut self) {
        let mut next = Instant::now() + self.options.resync;
        loop {
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.refresh.notified() => {}
                () = changed(&mut self.options.management) => {}
                event = next_event(&mut self.events) => {
                    self.note(event);
                    self.settle().await;
                    self.settled.notify_one();
                }
            }
            if self.events.is_none() {
                match Events::open() {
                    Ok(events) => self.events = Some(events),
                    Err(error) => warn!(%error, "cannot listen to the kernel's link events"),
                }
            }
            let rebuilt = self.rebuild().await;
            let healthy = rebuilt && self.events.is_some();
            next = Instant::now() + if healthy { self.options.resync } else { self.options.longest };
        }
    }

    /// Wait until events have stopped, or for the longest time.
    async fn settle(&mut self) {
        let end = Instant::now() + self.options.longest;
        loop {
            let quiet = (Instant::now() + self.options.quiet).min(end);
            // Without a socket, the time still passes: errors must not make a busy loop.
            match timeout_at(quiet, next_event(&mut self.events)).await {
                Ok(event) if Instant::now() < end => self.note(event),
                _ => return,
            }
        }
    }

    fn note(&mut self, event: io::Result<()>) {
        match event {
            Ok(()) => {
                self.stats.events.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.stats.overruns.fetch_add(1, Ordering::Relaxed);
                info!("link events were lost; reading everything again");
            }
            Err(error) => {
                warn!(%error, "the socket for link events failed; opening another");
                self.events = None;
            }
        }
    }

    async fn rebuild(&mut self) -> bool {
        match self.builder.build().await {
            Ok(inventory) => {
                let changed = self.sender.send_if_modified(|last| {
                    let changed = **last != inventory;
                    if changed {
                        *last = Arc::new(inventory);
                    }
                    changed
                });
                debug!(changed, "inventory rebuilt");
                true
            }
            Err(error) => {
                self.stats.failures.fetch_add(1, Ordering::Relaxed);
                warn!(error = &error as &dyn std::error::Error, "the inventory stays as it was");
                false
            }
        }
    }
}

/// The next change of the addresses; never, once nobody sends them.
async fn changed(management: &mut watch::Receiver<Management>) {
    if management.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The next event that can change the inventory; never, without a socket.
async fn next_event(events: &mut Option<Events>) -> io::Result<()> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

/// A socket subscribed to links, addresses and routes. Events only say that something changed; the facts come
/// from the dumps, so a lost or unreadable event can do no harm.
struct Events {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Events {
    fn open() -> io::Result<Self> {
        let mut socket = event_socket()?;
        let size = libc::c_int::try_from(RECEIVE_BUFFER).unwrap_or(libc::c_int::MAX);
        socket.socket_mut().set_rx_buf_sz(size)?;
        Ok(Self { socket, buffer: Vec::with_capacity(64 << 10) })
    }

    async fn next(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            self.socket.recv_from(&mut self.buffer).await?;
            if is_relevant(&self.buffer) {
                return Ok(());
            }
        }
    }
}

/// Whether a datagram tells of anything but routes that are no default routes: a router's daemon changes
/// thousands of those a minute.
fn is_relevant(mut datagram: &[u8]) -> bool {
    while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
        // `rtm_dst_len` is the second byte of `struct rtmsg`.
        let specific_route = ROUTE_MESSAGES.contains(&message.message_type())
            && message.payload().get(1).is_some_and(|prefix| *prefix != 0);
        if !specific_route {
            return true;
        }
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX).next_multiple_of(4);
        datagram = datagram.get(length..).unwrap_or_default();
    }
    // What is left over and cannot be read counts as a change.
    !datagram.is_empty()
}
