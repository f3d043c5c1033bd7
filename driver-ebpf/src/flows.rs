//! Connection tracking: a flow is judged once, by each of its endpoints, and again when policy changes.

use netferry_common::flow::{
    HIGH_CLOSED, HIGH_OPENED, HIGH_SENT, LOW_CLOSED, LOW_SENT, RESET, SCOPE_ENDPOINT, lifetime,
};
use netferry_common::{Addr, Direction, Endpoint, Flow, FlowKey, Reason, Side};

use crate::atomic::Word;
use crate::datagram::Datagram;
use crate::opaque::{hide, zero};
use crate::policy::{Decision, Question};
use crate::transport::{CLOSES, OPENS, RESETS, RESTARTS, Segment};

/// [`Flow`] in the map, which several CPUs read and write at a time, two halves a word: so endpoint and policy
/// version of a side change together.
#[repr(C)]
pub struct SharedFlow {
    seen: Word,
    /// State and rule.
    state: Word,
    /// A [`Side`].
    low: Word,
    /// A [`Side`].
    high: Word,
}

const _: () = assert!(size_of::<SharedFlow>() == size_of::<Flow>());

/// `seen` is brought up to date this often, nanoseconds: a write at each frame would move the cache line between
/// CPUs at each frame.
const SEEN_EVERY: u64 = 1_000_000_000;

/// Where a frame stands in its flow.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The flow.
    pub key: FlowKey,
    /// Not 0 if the frame was sent by its low side.
    pub from_low: u32,
}

/// The scope of an endpoint's flows. On the wire a flow is its endpoint's own.
#[inline(always)]
pub fn scope(endpoint: &Endpoint, id: u32) -> u32 {
    if endpoint.network == 0 { id | SCOPE_ENDPOINT } else { endpoint.network }
}

/// A frame between two sides: addresses, and ports in memory order.
#[derive(Clone, Copy)]
pub struct Between<'a> {
    /// IP protocol number.
    pub protocol: u8,
    /// Source.
    pub source: &'a Addr,
    /// Its port.
    pub source_port: u16,
    /// Destination.
    pub destination: &'a Addr,
    /// Its port.
    pub destination_port: u16,
}

impl<'a> Between<'a> {
    /// Of a datagram.
    #[inline(always)]
    pub fn of(ip: &'a Datagram, segment: &Segment) -> Self {
        Self {
            protocol: ip.protocol,
            source: &ip.source,
            source_port: segment.source_port,
            destination: &ip.destination,
            destination_port: segment.destination_port,
        }
    }
}

/// Order of the bytes, eight at a time.
#[inline(always)]
fn source_is_low(frame: &Between<'_>) -> bool {
    let lanes = |addr: &Addr| -> [u32; 4] { bytemuck::cast(*addr) };
    let wide = |high: u32, low: u32| (u64::from(u32::from_be(high)) << 32) | u64::from(u32::from_be(low));
    let (a, b) = (lanes(frame.source), lanes(frame.destination));
    let (a_high, b_high) = (wide(a[0], a[1]), wide(b[0], b[1]));
    if a_high != b_high {
        return a_high < b_high;
    }
    let (a_low, b_low) = (wide(a[2], a[3]), wide(b[2], b[3]));
    if a_low != b_low {
        return a_low < b_low;
    }
    u16::from_be(frame.source_port) <= u16::from_be(frame.destination_port)
}

/// A copy made word by word: of a whole address LLVM makes a call of `memmove`.
#[inline(always)]
fn copied(addr: &Addr) -> Addr {
    let [a, b, c, d]: [u32; 4] = bytemuck::cast(*addr);
    Addr::from_words([hide(a), hide(b), hide(c), hide(d)])
}

impl Place {
    /// Of no frame.
    pub const NONE: Self = Self {
        key: FlowKey {
            scope: 0,
            low: Addr::UNSPECIFIED,
            high: Addr::UNSPECIFIED,
            low_port: [0; 2],
            high_port: [0; 2],
            protocol: 0,
        },
        from_low: 0,
    };

    /// The place of a frame.
    #[inline(always)]
    pub fn of(scope: u32, frame: &Between<'_>) -> Self {
        let from_low = source_is_low(frame);
        let (low, high) =
            if from_low { (frame.source, frame.destination) } else { (frame.destination, frame.source) };
        let (low_port, high_port) = if from_low {
            (frame.source_port, frame.destination_port)
        } else {
            (frame.destination_port, frame.source_port)
        };
        let key = FlowKey {
            scope,
            low: copied(low),
            high: copied(high),
            low_port: low_port.to_ne_bytes(),
            high_port: high_port.to_ne_bytes(),
            protocol: u32::from(frame.protocol),
        };
        Self { key, from_low: u32::from(from_low) }
    }

    /// Makes this the place of a frame. In place, as the program's stack is small.
    #[inline(always)]
    pub fn find(&mut self, scope: u32, frame: &Between<'_>) {
        *self = Self::of(scope, frame);
    }

    #[inline(always)]
    fn is_from_low(&self) -> bool {
        self.from_low != 0
    }

    /// The bit of [`Flow::state`] for a frame of this sender.
    #[inline(always)]
    fn sent(&self) -> u32 {
        if self.is_from_low() { LOW_SENT } else { HIGH_SENT }
    }

    /// Bits of [`Flow::state`] this frame adds.
    #[inline(always)]
    fn bits(&self, segment: &Segment) -> u32 {
        let mut bits = self.sent();
        if segment.means & CLOSES != 0 {
            bits |= if self.is_from_low() { LOW_CLOSED } else { HIGH_CLOSED };
        }
        if segment.means & RESETS != 0 {
            bits |= RESET;
        }
        bits
    }

    /// A new flow that this frame opens, with no side judged yet.
    #[inline(always)]
    pub fn open(&self, segment: &Segment, now: u64, rule: u32) -> Flow {
        let opener = if self.is_from_low() { 0 } else { HIGH_OPENED };
        let nobody = Side { endpoint: zero(), policy: zero() };
        Flow { seen: now, state: opener | self.bits(segment), rule, low: nobody, high: nobody }
    }

    /// Records in a new flow that the endpoint on the sending (or receiving) side allowed it.
    #[inline(always)]
    pub fn allow(&self, flow: &mut Flow, sender: bool, endpoint: u32, policy: u32) {
        let side = if self.is_from_low() == sender { &mut flow.low } else { &mut flow.high };
        *side = Side { endpoint, policy };
    }
}

impl SharedFlow {
    /// A flow for the host's tables.
    #[must_use]
    pub fn new(flow: &Flow) -> Self {
        Self {
            seen: Word::new(flow.seen),
            state: Word::new(bytemuck::cast([flow.state, flow.rule])),
            low: Word::new(bytemuck::cast(flow.low)),
            high: Word::new(bytemuck::cast(flow.high)),
        }
    }

    /// Bits of [`Flow::state`].
    #[inline(always)]
    fn state(&self) -> u32 {
        let [state, _]: [u32; 2] = bytemuck::cast(self.state.load());
        state
    }

    /// Whether the frame belongs to this flow; else the entry is a leftover of one that is over.
    #[inline(always)]
    pub fn lives(&self, place: &Place, segment: &Segment, now: u64) -> bool {
        let state = self.state();
        // An ICMP request of the side that was asked, or a reply of the one that asked: with an identifier of 0, the sides
        // of a flow have the same ports.
        if segment.message != 0 && self.opened_by_sender(place) != (segment.means & OPENS != 0) {
            return false;
        }
        let over = state & RESET != 0 || state & (LOW_CLOSED | HIGH_CLOSED) == LOW_CLOSED | HIGH_CLOSED;
        if over && segment.means & RESTARTS != 0 {
            return false;
        }
        now.saturating_sub(self.seen.load()) <= lifetime(place.key.protocol as u8, state)
    }

    /// Whether a frame that neither opens nor ends a flow belongs to this one, and nothing of it is to be written down.
    #[inline(always)]
    pub fn goes_on(&self, place: &Place, now: u64) -> bool {
        let sent = place.sent();
        self.state() & (sent | RESET) == sent && now.wrapping_sub(self.seen.load()) <= SEEN_EVERY
    }

    #[inline(always)]
    fn side(&self, place: &Place, sender: bool) -> &Word {
        if place.is_from_low() == sender { &self.low } else { &self.high }
    }

    /// The endpoint on the sending (or receiving) side, as it was judged.
    #[inline(always)]
    pub fn judged(&self, place: &Place, sender: bool) -> Side {
        bytemuck::cast(self.side(place, sender).load())
    }

    /// Whether that endpoint allowed the flow under this policy version.
    #[inline(always)]
    pub fn allowed(&self, place: &Place, sender: bool, endpoint: u32, policy: u32) -> bool {
        self.judged(place, sender) == Side { endpoint, policy }
    }

    /// Records that it did.
    #[inline(always)]
    pub fn allow(&self, place: &Place, sender: bool, endpoint: u32, policy: u32) {
        self.side(place, sender).store(bytemuck::cast(Side { endpoint, policy }));
    }

    /// Whether the sender of this frame opened the flow.
    #[inline(always)]
    pub fn opened_by_sender(&self, place: &Place) -> bool {
        (self.state() & HIGH_OPENED == 0) == place.is_from_low()
    }

    /// Takes note of a frame. Tells whether it ends the flow (once).
    #[inline(always)]
    pub fn touch(&self, place: &Place, segment: &Segment, now: u64) -> bool {
        if now.wrapping_sub(self.seen.load()) > SEEN_EVERY {
            self.seen.store(now);
        }
        let state = self.state();
        let bits = place.bits(segment);
        // A forged RST must not cut short a connection that goes on: the next segment takes it back.
        if state & RESET != 0 && bits & RESET == 0 && segment.means & OPENS != 0 {
            self.state.keep(bytemuck::cast([!RESET, u32::MAX]));
        }
        if state & bits == bits {
            return false;
        }
        self.state.set(bytemuck::cast([bits, 0]));
        let over =
            |state: u32| state & RESET != 0 || state & (LOW_CLOSED | HIGH_CLOSED) == LOW_CLOSED | HIGH_CLOSED;
        !over(state) && over(state | bits)
    }
}

/// The question to ask an endpoint on the sending (or receiving) side about a flow.
#[inline(always)]
pub fn question(ip: &Datagram, segment: &Segment, sender: bool, opened_by_sender: bool) -> Question {
    let port = if opened_by_sender { segment.destination_port } else { segment.source_port };
    Question {
        direction: if sender == opened_by_sender { Direction::FromPod } else { Direction::ToPod },
        peer: if sender { ip.destination } else { ip.source },
        protocol: ip.protocol,
        port: if segment.message == 0 { u16::from_be(port) } else { segment.message },
    }
}

/// A decision as a result, with the rule noted.
#[inline(always)]
pub fn agreed(decision: Decision, rule: &mut u32) -> Result<(), Reason> {
    *rule = decision.rule;
    match decision.denied {
        Some(reason) => Err(reason),
        None => Ok(()),
    }
}
