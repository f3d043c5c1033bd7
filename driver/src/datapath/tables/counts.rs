//! What was counted of an endpoint.

use netferry_common::{CounterKey, Direction, Drops, Traffic as Counted};

use super::{Tables, found};
use crate::datapath::{DatapathError, EndpointId, EndpointStats, Traffic, bpf_error};

impl Tables {
    /// What an endpoint's pod has sent, by the way it took.
    pub(in crate::datapath) fn paths(&self, id: EndpointId) -> Result<Counted, DatapathError> {
        let key = CounterKey { endpoint: id, direction: Direction::FromPod.number() };
        let cpus = found(self.traffic.get(&key, 0))
            .map_err(|source| bpf_error(format!("read the counters of endpoint {id}"), source))?;
        let fast = self
            .fast(id)
            .map_err(|source| bpf_error(format!("read the counters of endpoint {id}"), source))?;
        let start = Counted {
            packets: fast.sent + fast.left,
            bytes: fast.sent_bytes + fast.left_bytes,
            fast: fast.sent,
            ..Counted::ZERO
        };
        Ok(cpus.iter().flat_map(|cpus| cpus.iter()).fold(start, |mut sum, cpu| {
            sum.packets += cpu.packets;
            sum.bytes += cpu.bytes;
            sum.dropped += cpu.dropped;
            sum.fast += cpu.fast;
            sum.slow_fragment += cpu.slow_fragment;
            sum.slow_options += cpu.slow_options;
            sum.slow_error += cpu.slow_error;
            sum
        }))
    }

    /// Adds up the counters of an endpoint. What never counted is 0.
    pub(in crate::datapath) fn stats(&self, id: EndpointId) -> Result<EndpointStats, DatapathError> {
        let failed = |source| bpf_error(format!("read the counters of endpoint {id}"), source);
        let mut stats = EndpointStats::default();
        let fast = self.fast(id).map_err(failed)?;
        let (sent, received) = (&mut stats.from_pod, &mut stats.to_pod);
        (sent.packets, sent.bytes, sent.fast) =
            (fast.sent + fast.left, fast.sent_bytes + fast.left_bytes, fast.sent);
        (received.packets, received.bytes) =
            (fast.received + fast.entered, fast.received_bytes + fast.entered_bytes);
        (sent.overlay, received.overlay) = (fast.left, fast.entered);
        for direction in Direction::ALL {
            let key = CounterKey { endpoint: id, direction: direction.number() };
            if let Some(cpus) = found(self.traffic.get(&key, 0)).map_err(failed)? {
                let sum = match direction {
                    Direction::FromPod => &mut stats.from_pod,
                    Direction::ToPod => &mut stats.to_pod,
                };
                for cpu in cpus.iter() {
                    *sum = Traffic {
                        packets: sum.packets + cpu.packets,
                        bytes: sum.bytes + cpu.bytes,
                        dropped: sum.dropped + cpu.dropped,
                        fast: sum.fast + cpu.fast,
                        slow: sum.slow
                            + cpu.slow_fragment
                            + cpu.slow_options
                            + cpu.slow_error
                            + cpu.slow_no_peer,
                        uplink: sum.uplink + cpu.uplink,
                        overlay: sum.overlay + cpu.overlay,
                    };
                }
            }
            if let Some(cpus) = found(self.drops.get(&key, 0)).map_err(failed)? {
                for (reason, count) in cpus.iter().flat_map(Drops::nonzero) {
                    *stats.drops.entry(reason.name().to_owned()).or_default() += count;
                }
            }
        }
        Ok(stats)
    }
}
