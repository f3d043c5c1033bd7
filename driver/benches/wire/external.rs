//! Paths that the benchmark did not make: two pods, however they are connected.

use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use super::netns::Netns;
use super::paths::{Evidence, Pods};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct External {
    /// Its name in the tables.
    pub(crate) name: String,
    client: String,
    server: String,
    to: IpAddr,
}

impl FromStr for External {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('=').map(|(name, ends)| (name, ends.split(',').collect::<Vec<_>>()));
        let Some((name, [client, server, address])) = parts.as_ref().map(|(name, ends)| (*name, &ends[..]))
        else {
            bail!("{text:?} is not NAME=CLIENT_NETNS,SERVER_NETNS,ADDRESS");
        };
        let plain = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
        ensure!(
            !name.is_empty() && name.chars().all(plain),
            "NAME: {name:?} is not made of letters, digits, '-', '_', '.'"
        );
        ensure!(
            !client.is_empty() && !server.is_empty(),
            "{text:?} names no network namespace for one of the pods"
        );
        let to = address
            .parse()
            .ok()
            .with_context(|| format!("ADDRESS: {address:?} is no IPv4 or IPv6 address"))?;
        Ok(Self { name: name.to_owned(), client: (*client).to_owned(), server: (*server).to_owned(), to })
    }
}

impl External {
    /// The pods, if they are there and the second has the address. What frames pass on their way is not known: that they
    /// come has to do as evidence.
    pub(crate) fn pods(&self) -> Result<(Pods, Evidence)> {
        let Self { name, client, server, to } = self;
        let open = |end, of: &str| Netns::open(of).with_context(|| format!("--extern {name}: {end}"));
        let (client, server) = (open("the client", client)?, open("the server", server)?);
        let has = server.run(|| {
            let all = nix::ifaddrs::getifaddrs()?.filter_map(|it| it.address);
            let mut all = all.filter_map(|it| {
                let v4 = it.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
                v4.or_else(|| it.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
            });
            Ok(all.any(|it| it == *to))
        })?;
        ensure!(
            has,
            "--extern {name}: no interface in the server's network namespace {} has the address {to}",
            self.server
        );
        Ok((Pods::there(client, server, *to)?, Box::new(|| Ok(()))))
    }

    /// A load with a connection for each transaction soon has no port that is free, unless ports that wait are used again.
    pub(crate) fn takes_connections(&self) -> Result<()> {
        let reuse = Netns::open(&self.client)?.number("ipv4/tcp_tw_reuse")?;
        ensure!(
            reuse == 1,
            "--extern {}: net.ipv4.tcp_tw_reuse is {reuse} in the client's network namespace {}; the load crr needs 1 there \
             (and a wide net.ipv4.ip_local_port_range): set it, or leave crr out with --only",
            self.name,
            self.client
        );
        Ok(())
    }
}
