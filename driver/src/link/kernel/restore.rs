//! Putting a link back as it was at home.
//!
//! The order is the kernel's: names, MAC and sysctls want the link down; IPv4 addresses may be added while it
//! is, IPv6 prefix routes and every other route only once it is up.

use std::cmp::Reverse;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkAttribute};

use super::{
    KernelLinks, SETTABLE_LINK_FLAGS,
    decode::LinkFacts,
    encode, home,
    subject::{Subject, add_route},
};
use crate::link::{Address, Home, LinkError, LinkRef, Links as _, Namespace, Neighbour, Route};

/// Errors so far; a failed part never stops the rest.
struct Restore<'a> {
    links: &'a KernelLinks,
    on: Subject,
    ifindex: u32,
    home: &'a Home,
    errors: Vec<LinkError>,
}

pub(super) async fn all(links: &KernelLinks, ifindex: u32, home: &Home) -> Result<(), Vec<LinkError>> {
    let on = links.on(&Namespace::Host, ifindex).await.map_err(|error| vec![error])?;
    let now = on.facts(&LinkRef::Index(ifindex)).await.map_err(|error| vec![error])?;
    let mut restore = Restore { links, on, ifindex, home, errors: Vec::new() };
    restore.names_and_settings(&now).await;
    restore.addresses_before_up().await;
    let state = restore.on.set_up(ifindex, home.link.up).await;
    restore.note(state);
    restore.addresses_after_up().await;
    restore.neighbours().await;
    restore.routes().await;
    if restore.errors.is_empty() { Ok(()) } else { Err(restore.errors) }
}

impl Restore<'_> {
    fn note(&mut self, result: Result<(), LinkError>) {
        self.errors.extend(result.err());
    }

    async fn change(&mut self, message: RouteNetlinkMessage, flags: u16, action: impl Into<String>) {
        let done = self.on.conversation.change(message, flags).await;
        let done = done.map_err(|source| self.on.error(action, source));
        self.note(done);
    }

    async fn set(&mut self, attribute: LinkAttribute, action: impl Into<String>) {
        let message = encode::link(self.ifindex, vec![attribute]);
        self.change(RouteNetlinkMessage::SetLink(message), 0, action).await;
    }

    async fn names_and_settings(&mut self, now: &LinkFacts) {
        let (links, ifindex, home) = (self.links, self.ifindex, self.home);
        let wanted = &home.link;
        let mac_differs = wanted.mac.is_some() && now.link.mac != wanted.mac;
        if now.link.up && (now.link.name != wanted.name || mac_differs || !wanted.up) {
            let down = self.on.set_up(ifindex, false).await;
            self.note(down);
        }
        if now.link.name != wanted.name {
            let renamed = self.on.rename(ifindex, &wanted.name).await;
            self.note(renamed);
        }
        for name in now.link.alt_names.difference(&wanted.alt_names) {
            let removed = links.remove_alt_name(&Namespace::Host, ifindex, name).await;
            self.note(removed);
        }
        for name in wanted.alt_names.difference(&now.link.alt_names) {
            let message = RouteNetlinkMessage::NewLinkProp(encode::alt_name(ifindex, name));
            let action = format!("add the alternative name {name:?}");
            self.change(message, NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND, action).await;
        }
        if let (Some(mac), true) = (wanted.mac, mac_differs) {
            let set = self.on.set_mac(ifindex, mac).await;
            self.note(set);
        }
        if now.link.mtu != wanted.mtu {
            let set = self.on.set_mtu(ifindex, wanted.mtu).await;
            self.note(set);
        }
        let (had, has) = (&home.settings, &now.settings);
        if had.alias != has.alias {
            let alias = had.alias.clone().unwrap_or_default();
            self.set(LinkAttribute::IfAlias(alias), "set the alias").await;
        }
        if let Some(length) = had.tx_queue_len.filter(|length| has.tx_queue_len != Some(*length)) {
            self.set(LinkAttribute::TxQueueLen(length), "set the transmit queue length").await;
        }
        if had.group != has.group {
            self.set(LinkAttribute::Group(had.group), "set the group").await;
        }
        if had.flags != has.flags {
            let message = encode::flags(ifindex, had.flags, SETTABLE_LINK_FLAGS);
            self.change(RouteNetlinkMessage::SetLink(message), 0, "set the flags").await;
        }
        // By the name it has now: the rename may have failed.
        let sysctls = self.on.set_sysctls(links.host(), ifindex, &home.sysctls).await;
        self.note(sysctls);
        if let Some(token) = had.token.filter(|token| has.token != Some(*token)) {
            let message = encode::token(ifindex, token);
            self.change(RouteNetlinkMessage::SetLink(message), 0, "set the IPv6 token").await;
        }
    }

    async fn addresses_before_up(&mut self) {
        let home = self.home;
        match home::addresses(&self.on, self.ifindex).await {
            Ok(now) => {
                for extra in now.iter().filter(|now| !home.addresses.iter().any(|had| same(had, now))) {
                    let message = RouteNetlinkMessage::DelAddress(encode::address(self.ifindex, extra));
                    self.change(message, 0, format!("remove the address {}", extra.address)).await;
                }
            }
            Err(error) => self.errors.push(error),
        }
        for address in home.addresses.iter().filter(|address| address.address.is_ipv4()) {
            let added = self.on.add_address(self.ifindex, address).await;
            self.note(added);
        }
    }

    async fn addresses_after_up(&mut self) {
        let now = match home::addresses(&self.on, self.ifindex).await {
            Ok(now) => now,
            Err(error) => return self.errors.push(error),
        };
        let mut added = Vec::new();
        // The kernel puts an IPv6 address before those of its scope: the last one first.
        for address in self.home.addresses.iter().rev().filter(|address| address.address.is_ipv6()) {
            // The link-local address comes back by itself when the link goes up, or a moment later. It stays if it is in
            // its place then.
            match now.iter().find(|now| same(address, now)) {
                Some(now) if added.contains(&address.scope) => {
                    let message = RouteNetlinkMessage::DelAddress(encode::address(self.ifindex, now));
                    self.change(message, 0, format!("remove the address {}", now.address)).await;
                }
                Some(now) if now.protocol == address.protocol => continue,
                Some(_) => {}
                None => added.push(address.scope),
            }
            let done = self.on.add_address(self.ifindex, address).await;
            self.note(done);
        }
    }

    async fn neighbours(&mut self) {
        for neighbour in &self.home.neighbours {
            let message = RouteNetlinkMessage::NewNeighbour(encode::neighbour(self.ifindex, neighbour));
            let Neighbour { address, mac } = neighbour;
            let action = format!("add the neighbour {address} {mac}");
            self.change(message, NLM_F_CREATE | NLM_F_REPLACE, action).await;
        }
    }

    async fn routes(&mut self) {
        let now = match home::routes(&self.on, self.ifindex).await {
            Ok((now, _)) => now,
            Err(error) => return self.errors.push(error),
        };
        for extra in now.iter().filter(|now| !self.home.routes.contains(now)) {
            let message = RouteNetlinkMessage::DelRoute(encode::route(self.ifindex, extra));
            self.change(message, 0, format!("remove the route to {}", extra.destination)).await;
        }
        let mut missing: Vec<&Route> = self.home.routes.iter().filter(|had| !now.contains(had)).collect();
        // A gateway must be reachable before it is named: narrow scopes and on-link routes first.
        missing.sort_by_key(|route| (Reverse(rank(route)), route.gateway.is_some()));
        for route in missing {
            let message = RouteNetlinkMessage::NewRoute(encode::route(self.ifindex, route));
            // Append: a route of another link with the same destination and metric stays what it is.
            self.change(message, NLM_F_CREATE | NLM_F_APPEND, add_route(route)).await;
        }
    }
}

fn rank(route: &Route) -> u8 {
    route.scope as u8
}

/// The same address as far as the kernel can tell two apart.
fn same(one: &Address, other: &Address) -> bool {
    one.address == other.address && one.peer == other.peer
}
