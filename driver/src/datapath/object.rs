//! The eBPF object built into the daemon, and one loader for all endpoints.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use netferry_common::{ENDPOINT_GLOBAL, PEER_GLOBAL, maps};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use sha2::{Digest as _, Sha256};

use super::features::Features;
use super::pins::{PinnedLink, Pins};
use super::sys::{self, Hook};
use super::{DatapathError, EndpointId, Placement, bpf_error, not_protected};

/// Built by `cargo xtask build-ebpf`, found by this crate's build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netferry.o"));

/// The first 12 digits of the SHA-256 of the eBPF object: two builds with the same digits run the same programs.
#[must_use]
pub fn programs_digest() -> String {
    let digest = Sha256::digest(OBJECT);
    let first = digest.iter().take(6).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    format!("{first:012x}")
}

/// Loads copies of the programs, each with its endpoint's id as a constant.
pub(super) struct ProgramLoader {
    /// Kept for its parsed copy of the kernel's type information, which is megabytes.
    loader: Mutex<EbpfLoader<'static>>,
    /// Where in the object's file the endpoint id is.
    endpoint_at: usize,
    /// Where whether the kernel can redirect to a peer is, and what it is.
    peer: (usize, u32),
}

impl ProgramLoader {
    /// Finds its way in the object, and ties every shared map to its pin.
    pub(super) fn new(pins: &Pins, features: Features, flows: Option<u32>) -> Result<Self, DatapathError> {
        let find = |name: &str| {
            constant_offset(OBJECT, name)
                .map_err(|source| bpf_error(format!("find the constant {name} in the eBPF object"), source))
        };
        let endpoint_at = find(ENDPOINT_GLOBAL)?;
        let peer = (find(PEER_GLOBAL)?, u32::from(features.redirect_peer));
        let mut loader = EbpfLoader::new();
        if let Some(flows) = flows {
            loader.map_max_entries(maps::FLOWS, flows);
        }
        // Nothing in the object is relocated against the kernel.
        loader.btf(None);
        for &name in maps::ALL {
            loader.map_pin_path(name, pins.maps().join(name));
        }
        Ok(Self { loader: Mutex::new(loader), endpoint_at, peer })
    }

    /// Opens or makes the maps, and prepares the programs of an endpoint. None is loaded into the kernel yet.
    pub(super) fn prepare(&self, id: EndpointId) -> Result<Ebpf, DatapathError> {
        // The parser wants 8-byte alignment, which a copy of bytes does not promise.
        let mut words = vec![0_u64; OBJECT.len().div_ceil(8)];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        bytes[..OBJECT.len()].copy_from_slice(OBJECT);
        for (at, value) in [(self.endpoint_at, id), self.peer] {
            bytes[at..][..size_of::<u32>()].copy_from_slice(&value.to_ne_bytes());
        }
        self.loader
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .load(&bytes[..OBJECT.len()])
            .map_err(|source| bpf_error("prepare the eBPF object", source))
    }
}

/// Names in driver-ebpf. On a moved link, what the device receives goes to the pod; on the host end of a
/// veth pair it comes from the pod.
pub(super) const fn program_name(placement: Placement, hook: Hook) -> &'static str {
    match (placement, hook) {
        (Placement::MovedLink | Placement::SharedMac, Hook::Ingress) => "link_ingress",
        (Placement::MovedLink | Placement::SharedMac, Hook::Egress) => "link_egress",
        (Placement::HostVeth, Hook::Ingress) => "from_pod",
        (Placement::HostVeth, Hook::Egress) => "to_pod",
    }
}

const PROGRAM_NAMES: [&str; 4] = ["link_ingress", "link_egress", "from_pod", "to_pod"];

/// Which program a link runs. The pin does not say which placement it was made for; the program's name does.
pub(super) fn running_name(link: &PinnedLink, id: EndpointId) -> Result<&'static str, DatapathError> {
    known_name(link.info.program, id)
}

/// Name of a program of endpoint `id`, which must be one of ours.
pub(super) fn known_name(program: u32, id: EndpointId) -> Result<&'static str, DatapathError> {
    let running = sys::program_name(program)
        .map_err(|source| bpf_error(format!("read the name of a program of endpoint {id}"), source))?;
    PROGRAM_NAMES
        .into_iter()
        .find(|name| *name == running)
        .ok_or_else(|| not_protected(id, format!("it runs {running}, which this version does not have")))
}

/// Where in the object's file a constant of the programs is, a `u32`.
fn constant_offset(object: &[u8], name: &str) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
    let file = object::File::parse(object)?;
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name)).ok_or("there is no such symbol")?;
    let section = file.section_by_index(symbol.section_index().ok_or("the symbol is in no section")?)?;
    let (start, length) = section.file_range().ok_or("its section has no bytes in the file")?;
    let place = symbol.address() - section.address();
    if symbol.size() != size_of::<u32>() as u64 || place + symbol.size() > length {
        return Err("it is not a u32 within its section".into());
    }
    Ok(usize::try_from(start + place)?)
}

/// Loads a program. The verifier gives way to a signal and wants to be asked again then; libbpf does that as often.
pub(super) fn load_patiently(program: &mut SchedClassifier) -> Result<(), ProgramError> {
    for _ in 0..4 {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == std::io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
    program.load()
}

/// Maps of the object by name: type, key size, value size and number of entries, as the kernel will have them.
pub(super) fn map_layouts() -> Result<Vec<(String, MapLayout)>, DatapathError> {
    let object = aya_obj::Object::parse(OBJECT)
        .map_err(|source| bpf_error("read the maps of the eBPF object", source))?;
    Ok(object
        .maps
        .into_iter()
        .filter(|(name, _)| maps::ALL.contains(&name.as_str()))
        .map(|(name, map)| {
            let layout = MapLayout {
                kind: map.map_type(),
                key: map.key_size(),
                value: map.value_size(),
                entries: map.max_entries(),
            };
            (name, layout)
        })
        .collect())
}

/// What must be the same for a pinned map to be taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapLayout {
    /// Number of its type in the kernel.
    pub(super) kind: u32,
    /// Bytes of a key.
    pub(super) key: u32,
    /// Bytes of a value.
    pub(super) value: u32,
    /// Most entries.
    pub(super) entries: u32,
}

impl std::fmt::Display for MapLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, key, value, entries } = self;
        write!(f, "type {kind}, {key} byte keys, {value} byte values, {entries} entries")
    }
}

/// Refuses pinned maps of another layout.
pub(super) fn check_pinned(maps: &Path) -> Result<(), DatapathError> {
    for (name, expected) in map_layouts()? {
        let pin = maps.join(&name);
        if !pin.exists() {
            continue;
        }
        let info = aya::maps::MapInfo::from_pin(&pin)
            .map_err(|source| bpf_error(format!("read the pinned map {}", pin.display()), source))?;
        let found = MapLayout {
            kind: info.map_type().map_or(0, |kind| kind as u32),
            key: info.key_size(),
            value: info.value_size(),
            entries: if name == maps::FLOWS { expected.entries } else { info.max_entries() },
        };
        if found != expected {
            return Err(bpf_error(
                format!("take over the pinned map {}", pin.display()),
                std::io::Error::other(format!(
                    "it has another layout: it is {found}; this version needs {expected}; end its pods and remove \
                     it, or run the version that made it"
                )),
            ));
        }
    }
    Ok(())
}
