//! Entry points of the programs. What they decide is in the library.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("build this for bpfel-unknown-none: cargo xtask build-ebpf");
}

#[cfg(target_arch = "bpf")]
mod outside;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::Global;
    use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
    use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
    use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_type};
    use aya_ebpf::macros::{cgroup_sockopt, classifier, lsm_cgroup, xdp};
    use aya_ebpf::programs::{LsmContext, SockoptContext, TcContext, XdpContext};
    use netferry_common::Direction;
    use netferry_common::counters::path;
    use netferry_ebpf::deliver::Target;
    use netferry_ebpf::guard::guard;
    use netferry_ebpf::judge::{Scratch, Verdict, judge};
    use netferry_ebpf::maps::{Maps, scratch};
    use netferry_ebpf::opaque::reread;
    use netferry_ebpf::packet::hook;
    use netferry_ebpf::short::{LEAVES, nf_established, nf_leave};
    use netferry_ebpf::skb::{PACKET_HOST, Skb};
    use netferry_ebpf::sockopt;
    use netferry_ebpf::tables::Tables as _;
    use netferry_ebpf::xdp::Buffer;

    /// Which endpoint this copy of the programs protects; set by the loader.
    #[unsafe(no_mangle)]
    static ENDPOINT: Global<u32> = Global::new(0);

    /// Moved link, towards the pod.
    #[classifier]
    fn link_ingress(context: TcContext) -> i32 {
        run::<{ hook::LINK }>(&context, Direction::ToPod)
    }

    /// Moved link, from the pod.
    #[classifier]
    fn link_egress(context: TcContext) -> i32 {
        run::<{ hook::LINK }>(&context, Direction::FromPod)
    }

    /// Host end of a veth pair, ingress: what the pod sent.
    #[classifier]
    fn from_pod(context: TcContext) -> i32 {
        let Some(scratch) = scratch() else { return TC_ACT_SHOT };
        match nf_established(context.skb.skb, ENDPOINT.load(), scratch) {
            0 => decide::<{ hook::PAIR }>(&context, scratch, Direction::FromPod),
            LEAVES => nf_leave(context.skb.skb, ENDPOINT.load(), scratch) as i32,
            ifindex => redirect(&context, Verdict::Redirect(Target { ifindex, path: path::FAST })),
        }
    }

    /// Host end of a veth pair, egress: what the pod will receive.
    #[classifier]
    fn to_pod(context: TcContext) -> i32 {
        run::<{ hook::PAIR }>(&context, Direction::ToPod)
    }

    /// Not for frames: the daemon runs it, see [`netferry_ebpf::sweep`]. It is of a kind that the kernel runs with interrupts
    /// on when it is asked to, and is never attached. By hand, as the macro for them returns 0 always.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "raw_tp")]
    extern "C" fn flow_sweep(_: *mut core::ffi::c_void) -> i32 {
        netferry_ebpf::sweep::sweep()
    }

    /// Link with native XDP, towards the pod, before the kernel makes a socket buffer.
    #[xdp(frags)]
    fn xdp_guard(context: XdpContext) -> u32 {
        match guard(&Buffer::new(context.ctx), &Maps, ENDPOINT.load()) {
            Ok(()) => XDP_PASS,
            Err(_) => XDP_DROP,
        }
    }

    /// Cgroup of a pod: system calls of the machine's own word size.
    #[cgroup_sockopt(setsockopt)]
    fn sockopt_guard(context: SockoptContext) -> i32 {
        // SAFETY: the kernel hands a valid context to the program for its whole run.
        let option = unsafe { &mut *context.sockopt };
        if sockopt::bypasses(option.level, option.optname) {
            return 0;
        }
        if option.optlen > sockopt::SEEN {
            // The kernel goes on with the caller's own value; it would refuse a length that it did not copy.
            option.optlen = 0;
        }
        1
    }

    /// Likewise for every system call, where the kernel asks BPF as a security module.
    #[lsm_cgroup(hook = "socket_setsockopt")]
    fn sockopt_lsm(context: LsmContext) -> i32 {
        i32::from(!sockopt::bypasses(context.arg(1), context.arg(2)))
    }

    #[inline(always)]
    fn run<const HOOK: u32>(context: &TcContext, direction: Direction) -> i32 {
        let Some(scratch) = scratch() else { return TC_ACT_SHOT };
        decide::<HOOK>(context, scratch, direction)
    }

    #[inline(always)]
    fn decide<const HOOK: u32>(context: &TcContext, scratch: &mut Scratch, direction: Direction) -> i32 {
        let skb = Skb::<HOOK>::new(context.skb.skb);
        match judge(&skb, &Maps, scratch, ENDPOINT.load(), direction) {
            // Other programs of the host come after ours, and may still drop.
            Verdict::Pass => TC_ACT_UNSPEC,
            Verdict::Drop(_) => TC_ACT_SHOT,
            // Read back: a target that only some verdicts carry would be a stack slot that others leave unwritten, which
            // older verifiers do not let a program read.
            Verdict::Redirect(_) => redirect(context, Verdict::Redirect(reread(&scratch.target))),
            Verdict::Bounce | Verdict::Refuse(_) => redirect(context, Verdict::Bounce),
        }
    }

    /// Sends the frame out of another interface, or back out of its own.
    #[inline(always)]
    fn redirect(context: &TcContext, verdict: Verdict) -> i32 {
        let skb = context.skb.skb;
        // SAFETY: the context is valid, and the helpers check what they are given.
        unsafe {
            match verdict {
                // Asked again, so that a kernel without it sees that this is never reached.
                Verdict::Redirect(Target { ifindex, path: path::FAST }) if Maps.redirects_to_peer() => {
                    // The frame is for the receiver's address, not for the host end it arrived at, and so counts as
                    // somebody else's until this is said.
                    bpf_skb_change_type(skb, PACKET_HOST);
                    bpf_redirect_peer(ifindex, 0) as i32
                }
                Verdict::Redirect(Target { ifindex, path: path::ROUTED }) => {
                    // By the routes of the host's namespace, and only those over that link.
                    bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32
                }
                // Where to, `nf_encapsulate` has said.
                Verdict::Redirect(Target { path: path::ENCAPSULATED, .. }) => TC_ACT_REDIRECT,
                Verdict::Redirect(Target { ifindex, .. }) => bpf_redirect(ifindex, 0) as i32,
                _ => bpf_redirect((*skb).ifindex, 0) as i32,
            }
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
