//! Small programs assembled by hand, as an object that the loader reads: what a benchmark compares ours with.

use anyhow::{Context, Result};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use object::write::{Object, Relocation, StandardSegment, Symbol, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags, SymbolKind,
    SymbolScope,
};

/// Name of the program in the object.
pub(crate) const PROGRAM: &str = "assembled";
/// Name of the array of programs it may jump to.
pub(crate) const TARGETS: &str = "targets";

/// An instruction: operation, destination and source register, offset, constant (`struct bpf_insn` of linux/bpf.h).
pub(crate) type Instruction = (u8, u8, u8, i16, i32);

/// The low half of a load of [`TARGETS`] into a register; the loader puts the map in. [`REST`] follows.
pub(crate) const fn load_targets(register: u8) -> Instruction {
    (0x18, register, 0, 0, 0)
}

/// The high half.
pub(crate) const REST: Instruction = (0, 0, 0, 0, 0);

/// `exit`.
pub(crate) const EXIT: Instruction = (0x95, 0, 0, 0, 0);

/// Calls a helper of the kernel by its number.
pub(crate) const fn call(helper: i32) -> Instruction {
    (0x85, 0, 0, 0, helper)
}

/// Loads a classifier with these instructions.
pub(crate) fn load(instructions: &[Instruction]) -> Result<Ebpf> {
    let mut ebpf = EbpfLoader::new().load(&elf(instructions)?).context("an assembled object")?;
    program(&mut ebpf)?.load().context("load an assembled program")?;
    Ok(ebpf)
}

/// The program of such an object.
pub(crate) fn program(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier> {
    Ok(ebpf.program_mut(PROGRAM).context("the object has its program")?.try_into()?)
}

fn elf(instructions: &[Instruction]) -> Result<Vec<u8>> {
    let mut elf = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let segment = elf.segment_name(StandardSegment::Text).to_vec();
    let text = elf.add_section(segment, b"classifier".to_vec(), SectionKind::Text);
    let data = elf.segment_name(StandardSegment::Data).to_vec();
    let code: Vec<u8> = instructions.iter().copied().flat_map(encode).collect();
    elf.append_section_data(text, &code, 8);
    let function = (PROGRAM, 0, code.len() as u64, SymbolKind::Text);
    symbol(&mut elf, function, SymbolSection::Section(text));
    let license = elf.add_section(data.clone(), b"license".to_vec(), SectionKind::Data);
    elf.append_section_data(license, b"GPL\0", 1);
    let places = instructions.iter().enumerate().filter(|(_, instruction)| instruction.0 == 0x18);
    let places: Vec<u64> = places.map(|(at, _)| at as u64 * 8).collect();
    if !places.is_empty() {
        // BPF_MAP_TYPE_PROG_ARRAY, size of a key and of a value, entries, flags.
        let definition: Vec<u8> = [3_u32, 4, 4, 1, 0].into_iter().flat_map(u32::to_le_bytes).collect();
        let maps = elf.add_section(data, b"maps".to_vec(), SectionKind::Data);
        elf.append_section_data(maps, &definition, 4);
        let array = (TARGETS, 0, definition.len() as u64, SymbolKind::Data);
        let array = symbol(&mut elf, array, SymbolSection::Section(maps));
        for offset in places {
            // R_BPF_64_64
            let flags = RelocationFlags::Elf { r_type: 1 };
            elf.add_relocation(text, Relocation { offset, symbol: array, addend: 0, flags })?;
        }
    }
    Ok(elf.write()?)
}

fn symbol(
    elf: &mut Object<'_>,
    (name, value, size, kind): (&str, u64, u64, SymbolKind),
    section: SymbolSection,
) -> SymbolId {
    let (name, scope, flags) = (name.as_bytes().to_vec(), SymbolScope::Linkage, SymbolFlags::None);
    elf.add_symbol(Symbol { name, value, size, kind, scope, weak: false, section, flags })
}

fn encode((operation, destination, source, offset, constant): Instruction) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[0] = operation;
    bytes[1] = destination | source << 4;
    bytes[2..4].copy_from_slice(&offset.to_le_bytes());
    bytes[4..].copy_from_slice(&constant.to_le_bytes());
    bytes
}
