//! Pairs: what becomes of one end becomes of the other.

use super::{FakeLink, FakeLinks};
use crate::link::{Ends, LinkError, Namespace, Pair, PairKind};

impl FakeLinks {
    pub(super) fn add_pair(&self, pair: &Pair) -> Result<Ends, LinkError> {
        let Pair { kind, host_name, pod, pod_name, pod_mac, mtu } = pair;
        let mut state = self.change(&Namespace::Host, 0, format!("make the pair {host_name}"))?;
        state.links(pod)?;
        state.free(&Namespace::Host, host_name)?;
        state.free(pod, pod_name)?;
        let (host, inside) = (Namespace::Host.to_string(), state.key(pod));
        let next = state.next_index();
        let ends = Ends { host: next, pod: next + 1 };
        for (at, name, ifindex) in [(&host, host_name, ends.host), (&inside, pod_name, ends.pod)] {
            let mut link = FakeLink::hardware(name, ifindex).of_kind(kind.as_str());
            link.home.link.up = false;
            link.home.link.mtu = *mtu;
            link.home.link.blackhole = *kind == PairKind::Netkit;
            if *at == inside {
                link.home.link.mac = Some(*pod_mac);
            }
            state.namespaces.entry(at.clone()).or_default().insert(ifindex, link);
        }
        state.pairs.push([(host, ends.host), (inside, ends.pod)]);
        Ok(ends)
    }

    pub(super) fn open_end(&self, host_end: u32, kind: PairKind) -> Result<(), LinkError> {
        let action = format!("open the {} pair", kind.as_str());
        let mut state = self.change(&Namespace::Host, host_end, action)?;
        state.link(&Namespace::Host, host_end)?.home.link.up = true;
        let end = (Namespace::Host.to_string(), host_end);
        let ends = state.pairs.iter().find(|pair| pair.contains(&end)).cloned();
        for (namespace, ifindex) in ends.into_iter().flatten() {
            if let Some(link) = state.namespaces.get_mut(&namespace).and_then(|links| links.get_mut(&ifindex))
            {
                link.home.link.blackhole = false;
            }
        }
        Ok(())
    }
}
