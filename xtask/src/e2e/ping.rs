//! What a ping that goes on in a pod has seen: which of its requests were answered.

/// Answers by sequence number.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    /// How many requests were answered.
    pub(crate) answered: usize,
    /// How many before the last answered one were not.
    pub(crate) lost: usize,
}

/// The seconds between two requests.
pub(crate) const INTERVAL: f64 = 0.2;

impl Trace {
    /// Reads the output of ping, of busybox and of iputils alike.
    pub(crate) fn read(output: &str) -> Self {
        let mut seen: Vec<u64> = output.lines().filter_map(sequence).collect();
        seen.sort_unstable();
        seen.dedup();
        let span = match (seen.first(), seen.last()) {
            (Some(first), Some(last)) => usize::try_from(last - first + 1).unwrap_or(usize::MAX),
            _ => 0,
        };
        Self { answered: seen.len(), lost: span - seen.len() }
    }
}

fn sequence(line: &str) -> Option<u64> {
    if !line.contains("bytes from") || line.contains("DUP") {
        return None;
    }
    let rest = line.split_once("seq=")?.1;
    rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_losses_whoever_pings() {
        let busybox = "PING a (a): 56 data bytes\n64 bytes from a: seq=0 ttl=64 time=0.1 ms\n64 bytes from a: seq=3 ttl=64 time=0.1 ms\n";
        assert_eq!(Trace::read(busybox), Trace { answered: 2, lost: 2 });
        let iputils = "64 bytes from a: icmp_seq=1 ttl=64 time=0.1 ms\n64 bytes from a: icmp_seq=2 ttl=64 time=1 ms\n64 bytes from a: icmp_seq=2 ttl=64 time=1 ms (DUP!)\n";
        assert_eq!(Trace::read(iputils), Trace { answered: 2, lost: 0 });
        assert_eq!(
            Trace::read("From b icmp_seq=1 Destination Host Unreachable\n"),
            Trace { answered: 0, lost: 0 }
        );
    }
}
