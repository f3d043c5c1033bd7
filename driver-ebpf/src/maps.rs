//! The maps in the kernel.
//!
//! Macros take names as literals only; a test of the loaded object compares them with `netferry_common::maps`.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::{HashMap, PerCpuHashMap};
use aya_ebpf::macros::btf_map;
use netferry_common::maps::{MAX_ADDRESSES, MAX_COUNTERS, MAX_ENDPOINTS};
use netferry_common::{Address, AddressKey, CounterKey, Direction, Drops, Endpoint, Reason, Traffic};

use crate::tables::Tables;

#[btf_map(name = "nf_endpoints")]
static ENDPOINTS: HashMap<u32, Endpoint, MAX_ENDPOINTS> = HashMap::new();

#[btf_map(name = "nf_addresses")]
static ADDRESSES: HashMap<AddressKey, Address, MAX_ADDRESSES> = HashMap::new();

#[btf_map(name = "nf_traffic")]
static TRAFFIC: PerCpuHashMap<CounterKey, Traffic, MAX_COUNTERS> = PerCpuHashMap::new();

#[btf_map(name = "nf_drops")]
static DROPS: PerCpuHashMap<CounterKey, Drops, MAX_COUNTERS> = PerCpuHashMap::new();

/// [`Tables`] on the maps of this object.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn endpoint(&self, id: u32) -> Option<&Endpoint> {
        // SAFETY: programs never write endpoints, and user space replaces an element instead of changing it.
        unsafe { ENDPOINTS.get(id) }
    }

    #[inline(always)]
    fn address(&self, key: &AddressKey) -> Option<Address> {
        // SAFETY: as for endpoints; the value is copied at once.
        unsafe { ADDRESSES.get(key) }.copied()
    }

    #[inline(always)]
    fn passed(&self, endpoint: u32, direction: Direction, packets: u64, bytes: u64) {
        if let Some(traffic) = traffic(endpoint, direction) {
            // SAFETY: the element is this CPU's own, and a program is not interrupted by another of its kind.
            unsafe {
                (*traffic).packets += packets;
                (*traffic).bytes += bytes;
            }
        }
    }

    #[inline(always)]
    fn dropped(&self, endpoint: u32, direction: Direction, reason: Reason) {
        let key = CounterKey { endpoint, direction: direction.number() };
        if let Some(traffic) = traffic(endpoint, direction) {
            // SAFETY: as in `passed`.
            unsafe { (*traffic).dropped += 1 };
        }
        let mut drops = DROPS.get_ptr_mut(key);
        if drops.is_none() {
            let _ = DROPS.insert(key, &NO_DROPS, u64::from(BPF_NOEXIST));
            drops = DROPS.get_ptr_mut(key);
        }
        if let Some(drops) = drops {
            let place = reason.number() as usize;
            if place < netferry_common::verdict::REASON_SLOTS {
                // SAFETY: `Drops` is that many u64 and nothing else, asserted where it is defined.
                unsafe { *drops.cast::<u64>().add(place) += 1 };
            }
        }
    }
}

#[inline(always)]
fn traffic(endpoint: u32, direction: Direction) -> Option<*mut Traffic> {
    let key = CounterKey { endpoint, direction: direction.number() };
    if let Some(traffic) = TRAFFIC.get_ptr_mut(key) {
        return Some(traffic);
    }
    // Two CPUs may both find nothing: the loser's insert fails, and both find the winner's.
    let _ = TRAFFIC.insert(key, &NO_TRAFFIC, u64::from(BPF_NOEXIST));
    TRAFFIC.get_ptr_mut(key)
}

// In read-only data, as a zero value built on the stack becomes a call of `memset`, a function of its own that
// loaders other than aya refuse.
static NO_TRAFFIC: Traffic = Traffic { packets: 0, bytes: 0, dropped: 0 };
static NO_DROPS: Drops = Drops::ZERO;
