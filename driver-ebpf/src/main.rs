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
    use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_peer, bpf_skb_change_type};
    use aya_ebpf::macros::classifier;
    use aya_ebpf::programs::TcContext;
    use netferry_common::Direction;
    use netferry_common::counters::path;
    use netferry_ebpf::deliver::Target;
    use netferry_ebpf::judge::{Verdict, judge};
    use netferry_ebpf::maps::{Maps, scratch};
    use netferry_ebpf::opaque::reread;
    use netferry_ebpf::skb::Skb;

    /// Which endpoint this copy of the programs protects; set by the loader.
    #[unsafe(no_mangle)]
    static ENDPOINT: Global<u32> = Global::new(0);

    /// Moved link, towards the pod.
    #[classifier]
    fn link_ingress(context: TcContext) -> i32 {
        run::<false>(&context, Direction::ToPod)
    }

    /// Moved link, from the pod.
    #[classifier]
    fn link_egress(context: TcContext) -> i32 {
        run::<false>(&context, Direction::FromPod)
    }

    /// Host end of a veth pair, ingress: what the pod sent.
    #[classifier]
    fn from_pod(context: TcContext) -> i32 {
        run::<true>(&context, Direction::FromPod)
    }

    /// Host end of a veth pair, egress: what the pod will receive.
    #[classifier]
    fn to_pod(context: TcContext) -> i32 {
        run::<true>(&context, Direction::ToPod)
    }

    #[inline(always)]
    fn run<const HOST_END: bool>(context: &TcContext, direction: Direction) -> i32 {
        let skb = Skb::<HOST_END>::new(context.skb.skb);
        let Some(scratch) = scratch() else { return TC_ACT_SHOT };
        match judge(&skb, &Maps, scratch, ENDPOINT.load(), direction) {
            // Other programs of the host come after ours, and may still drop.
            Verdict::Pass => TC_ACT_UNSPEC,
            Verdict::Drop(_) => TC_ACT_SHOT,
            // Read back: a target that only some verdicts carry would be a stack slot that others leave unwritten, which
            // older verifiers do not let a program read.
            Verdict::Redirect(_) => redirect(context, Verdict::Redirect(reread(&scratch.target))),
            Verdict::Bounce => redirect(context, Verdict::Bounce),
        }
    }

    /// Sends the frame out of another interface, or back out of its own.
    #[inline(always)]
    fn redirect(context: &TcContext, verdict: Verdict) -> i32 {
        let skb = context.skb.skb;
        // SAFETY: the context is valid, and the helpers check what they are given.
        unsafe {
            match verdict {
                Verdict::Redirect(Target { ifindex, path: path::FAST }) => {
                    // The frame is for the receiver's address, not for the host end it arrived at, and so counts as
                    // somebody else's until this is said.
                    bpf_skb_change_type(skb, PACKET_HOST);
                    bpf_redirect_peer(ifindex, 0) as i32
                }
                Verdict::Redirect(Target { ifindex, .. }) => bpf_redirect(ifindex, 0) as i32,
                _ => bpf_redirect((*skb).ifindex, 0) as i32,
            }
        }
    }

    /// `PACKET_HOST` of linux/if_packet.h.
    const PACKET_HOST: u32 = 0;

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    /// Licence of the object: some helpers are for GPL-compatible programs only.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}
