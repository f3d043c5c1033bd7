//! Entry points of the programs. What they decide is in the library.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("build this for bpfel-unknown-none: cargo xtask build-ebpf");
}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::Global;
    use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
    use aya_ebpf::macros::classifier;
    use aya_ebpf::programs::TcContext;
    use netferry_common::Direction;
    use netferry_ebpf::judge::{Verdict, judge};
    use netferry_ebpf::maps::{Maps, scratch};
    use netferry_ebpf::skb::Skb;

    /// Which endpoint this copy of the programs protects; set by the loader.
    #[unsafe(no_mangle)]
    static ENDPOINT: Global<u32> = Global::new(0);

    /// Moved link, towards the pod.
    #[classifier]
    fn link_ingress(context: TcContext) -> i32 {
        run(&context, Direction::ToPod)
    }

    /// Moved link, from the pod.
    #[classifier]
    fn link_egress(context: TcContext) -> i32 {
        run(&context, Direction::FromPod)
    }

    /// Host end of a veth pair, ingress: what the pod sent.
    #[classifier]
    fn from_pod(context: TcContext) -> i32 {
        run(&context, Direction::FromPod)
    }

    /// Host end of a veth pair, egress: what the pod will receive.
    #[classifier]
    fn to_pod(context: TcContext) -> i32 {
        run(&context, Direction::ToPod)
    }

    #[inline(always)]
    fn run(context: &TcContext, direction: Direction) -> i32 {
        let skb = Skb::new(context.skb.skb);
        let Some(scratch) = scratch() else { return TC_ACT_SHOT };
        match judge(&skb, &Maps, scratch, ENDPOINT.load(), direction) {
            // Other programs of the host come after ours, and may still drop.
            Verdict::Pass => TC_ACT_UNSPEC,
            Verdict::Drop(_) => TC_ACT_SHOT,
        }
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    /// Licence of the object: some helpers are for GPL-compatible programs only.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}
