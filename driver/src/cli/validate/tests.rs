use super::*;

fn said(text: &str) -> Vec<String> {
    check(&[("f".to_owned(), text.to_owned())], "netferry.dev").iter().flat_map(lines).collect()
}

fn network(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: netferry.dev/v1alpha1\nkind: Network\nmetadata: {{name: {name}}}\nspec: {{{rest}}}\n"
    )
}

fn class(name: &str, parameters: &str) -> String {
    format!(
        "apiVersion: resource.k8s.io/v1\nkind: DeviceClass\nmetadata: {{name: {name}}}\nspec: {{config: [{{opaque: {{driver: \
         netferry.dev, parameters: {{apiVersion: netferry.dev/v1alpha1, kind: InterfaceConfig, {parameters}}}}}}}]}}\n"
    )
}

/// A claim with requests `a` and `b` of class `netferry.dev`, and these entries of `config`.
fn claim(config: &str) -> String {
    format!(
        "apiVersion: resource.k8s.io/v1\nkind: ResourceClaim\nmetadata: {{name: c}}\nspec: {{devices: {{requests: [{{name: a, \
         exactly: {{deviceClassName: netferry.dev}}}}, {{name: b, exactly: {{deviceClassName: netferry.dev}}}}], config: \
         [{config}]}}}}\n"
    )
}

fn opaque(requests: &str, parameters: &str) -> String {
    format!(
        "{{requests: [{requests}], opaque: {{driver: netferry.dev, parameters: {{apiVersion: netferry.dev/v1alpha1, kind: \
         InterfaceConfig, {parameters}}}}}}}"
    )
}

const LOCAL: &str = "subnets: [10.1.0.0/16], transport: {local: {}}";

/// What is written, and all that is said of it.
#[test]
#[expect(clippy::too_many_lines, reason = "one table of cases")]
fn each_mistake_is_named_with_file_document_object_field_and_what_is_allowed() {
    let of = |rest: &str| network("blue", &format!("{LOCAL}, {rest}"));
    let (n, c) = ("f: document 1: Network blue: ", "f: document 1: ResourceClaim default/c: ");
    let label = "the key of a label: an optional DNS subdomain and '/', then 1 to 63 letters, digits, '-', '_' and '.', with \
                 a letter or digit at both ends";
    let cases = [
        ("a: [".to_owned(), "f: document 1: not YAML: did not find expected node content at line 2 column 1, while parsing a flow node".to_owned()),
        ("kind: Network".to_owned(), "f: document 1: Network: apiVersion: is missing; an object has apiVersion and kind".to_owned()),
        (
            "apiVersion: netferry.dev/v9\nkind: Network\nmetadata: {name: blue}\n".to_owned(),
            format!("{n}apiVersion: netferry.dev/v9 is not allowed; netferry.dev/v1alpha1"),
        ),
        (
            "apiVersion: netferry.dev/v1alpha1\nkind: Networks\nmetadata: {name: blue}\n".to_owned(),
            "f: document 1: Networks blue: kind: Networks is not allowed; InterfaceConfig, Network".to_owned(),
        ),
        (
            of("gateways: [10.2.0.1]"),
            format!("{n}spec.gateways[0]: 10.2.0.1 is not allowed; an address in one of the subnets"),
        ),
        (
            network("blue", "subnets: [\"fd00:1::/64\"], transport: {local: {}}, mtu: 1000"),
            format!("{n}spec.mtu: 1000 is not allowed; 1280 to 65535 (IPv6 needs 1280)"),
        ),
        (of("limits: {}"), format!("{n}spec.limits: {{}} is not allowed; one limit or more, or leave the field out for none")),
        (of("limits: "), format!("{n}spec.limits: null is not allowed; a value, or leave the field out")),
        (
            of("policy: {egress: {rules: [{action: allow, peers: }]}}"),
            format!("{n}spec.policy.egress.rules[0].peers: null is not allowed; a value, or leave the field out"),
        ),
        (
            of("policy: {egress: {rules: [{action: allow, peers: []}]}}"),
            format!("{n}spec.policy.egress.rules[0].peers: [] is not allowed; name peers, or leave it out for every peer"),
        ),
        (
            of("policy: {egress: {rules: [{action: permit}]}}"),
            format!("{n}spec.policy.egress.rules[0].action: \"permit\" is not allowed; \"allow\" or \"deny\""),
        ),
        (
            of("policy: {egress: {rules: [{action: deny, peers: [{podSelector: {\"a b\": x}}]}]}}"),
            format!("{n}spec.policy.egress.rules[0].peers[0].podSelector[\"a b\"]: \"a b\" is not allowed; {label}"),
        ),
        (
            of("namespaceSelector: {matchLabels: {\"team/\": shop}}"),
            format!("{n}spec.namespaceSelector.matchLabels[\"team/\"]: \"team/\" is not allowed; {label}"),
        ),
        (of("mtuu: 1500"), format!("{n}spec.mtuu: this field is not allowed; subnets, gateways, addresses, mtu, transport, namespaceSelector, policy, limits")),
        (
            network("blue", "subnets: [10.1.0.0/16], transport: {uplink: {selector: 1+1}}"),
            format!("{n}spec.transport.uplink.selector: 1+1 is not allowed; a CEL expression over a link's attributes (line 1, column 2: it gives an int; allowed: true or false)"),
        ),
        (
            claim(&opaque("a, d", "mtu: 1500")),
            format!("{c}spec.devices.config[0].requests[1]: d is not allowed; a request of the claim: a, b"),
        ),
        (
            claim(&opaque("a", "routes: [{destination: 198.51.100.0/24, gateway: 192.0.2.1}]")),
            format!("{c}request a: routes[0].gateway: 192.0.2.1 is not allowed; an address in the network of one of the interface's addresses, or in the destination of a route without gateway in the same table or in main"),
        ),
        (
            claim(&opaque("a", "mtu: 1000, addresses: [\"fd00::1/64\"]")),
            format!("{c}request a: mtu: 1000 is not allowed; 1280 to 65535 where IPv6 is configured"),
        ),
        (
            claim(&format!("{}, {}", opaque("a", "name: net1"), opaque("b", "name: net1"))),
            format!("{c}request b: name: net1 is not allowed; a name that is free in the pod; request a has this one"),
        ),
        (
            claim(&format!("{}, {}", opaque("a", "addresses: [10.0.0.1/8]"), opaque("b", "addresses: [10.0.0.1/8]"))),
            format!("{c}request b: addresses: 10.0.0.1/8 is not allowed; on one interface of the claim only"),
        ),
        (
            claim(&opaque("a", "subInterface: {vlan: {id: 7}}")),
            format!("{c}spec.devices.config[0].opaque.parameters.subInterface.vlan.id: 7 is not allowed; a VLAN in the device class only: on which one a pod is, is not for its claim to say"),
        ),
        (
            claim(&opaque("a", "mtu: 40")),
            format!("{c}spec.devices.config[0].opaque.parameters.mtu: 40 is not allowed; 68 to 65535"),
        ),
        (
            claim("{opaque: {driver: netferry.de, parameters: {mtu: 40}}}"),
            format!("{c}warning: spec.devices.config[0].opaque.driver: netferry.de is not allowed; probably netferry.dev: the configuration of another driver is not read"),
        ),
        (
            claim("").replace("name: b", "name: a"),
            format!("{c}spec.devices.requests[1].name: a is not allowed; each name once in the claim"),
        ),
        (
            claim("").replace("{deviceClassName: netferry.dev}}]", "{deviceClassName: netferry.dev, selectors: [{cel: {expression: 1+1}}]}}]"),
            format!("{c}spec.devices.requests[1].exactly.selectors[0].cel.expression: 1+1 is not allowed; a condition over a device (line 1, column 2: it gives an int; allowed: true or false)"),
        ),
        (
            claim("").replace("name: a,", "name: a, colour: red,"),
            format!("{c}spec.devices.requests[0].colour: unknown field"),
        ),
        (
            claim("").replace("kind: ResourceClaim\n", "kind: ResourceClaim\nkind: ResourceClaim\n"),
            "f: document 1: not YAML: duplicate entry with key \"kind\"".to_owned(),
        ),
        (
            class("fast", "mtu: 40"),
            "f: document 1: DeviceClass fast: spec.config[0].opaque.parameters.mtu: 40 is not allowed; 68 to 65535".to_owned(),
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(said(&text), [wanted], "{text}");
    }
}

#[test]
fn objects_are_checked_beside_each_other() {
    let overlay = |name: &str| network(name, "subnets: [10.1.0.0/16], transport: {overlay: {vni: 7}}");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {resourceClaims: [{name: n, resourceClaimName: cc}], \
               containers: [{name: x, resources: {claims: [{name: m}]}}]}\n";
    let of_class = claim(&opaque("a", "isolation: off")).replace(
        "{name: a, exactly: {deviceClassName: netferry.dev}}",
        "{name: a, exactly: {deviceClassName: fast}}",
    );
    let cases = [
        (
            vec![overlay("a"), overlay("b")],
            vec![
                "f: document 2: Network b: spec.transport.overlay.vni: 7 is not allowed; a VNI of its own; the older network \"a\" has it",
            ],
        ),
        (
            vec![overlay("a"), overlay("a")],
            vec![
                "f: document 2: Network a: metadata.name: a is not allowed; each name once; f, document 1 has it, too",
            ],
        ),
        (
            vec![claim(""), pod.to_owned()],
            vec![
                "f: document 2: Pod default/p: spec.resourceClaims[0].resourceClaimName: cc is not allowed; a ResourceClaim of namespace default; these files have: c",
                "f: document 2: Pod default/p: spec.containers[0].resources.claims[0].name: m is not allowed; a name of spec.resourceClaims: n",
            ],
        ),
        (
            vec![class("fast", "isolation: strict"), of_class],
            vec![
                "f: document 2: ResourceClaim default/c: spec.devices.config[0].opaque.parameters.isolation: \"off\" is not allowed; \"strict\", which the device class sets, or what is stricter",
            ],
        ),
        (
            vec![
                class("fast", "mtu: 1500"),
                claim("").replace(
                    "{name: b, exactly: {deviceClassName: netferry.dev}}",
                    "{name: b, exactly: {deviceClassName: fats}}",
                ),
            ],
            vec![
                "f: document 2: ResourceClaim default/c: spec.devices.requests[1].exactly.deviceClassName: fats is not allowed; a DeviceClass; these files have: fast",
            ],
        ),
        // A broken document does not hide the next one.
        (
            vec!["a: [\n".to_owned(), network("blue", "subnets: [], transport: {local: {}}")],
            vec![
                "f: document 1: not YAML: did not find expected node content at line 2 column 1, while parsing a flow node",
                "f: document 2: Network blue: spec.subnets: 0 subnets is not allowed; one of each family at most, and one at least",
            ],
        ),
    ];
    for (documents, wanted) in cases {
        assert_eq!(said(&documents.join("---\n")), wanted, "{documents:?}");
    }
}

#[test]
fn what_is_right_passes() {
    let both =
        format!("{}, {}", opaque("a", "name: net1, addresses: [10.0.0.1/8]"), opaque("b", "name: net2"));
    for text in
        [network("blue", LOCAL), claim(&both), claim(&opaque("", "mtu: 1500")), class("fast", "mtu: 9000")]
    {
        assert_eq!(said(&text), [""; 0], "{text}");
    }
}

#[test]
fn every_manifest_and_example_is_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    let mut files = Vec::new();
    for folder in ["base", "examples"] {
        for entry in fs::read_dir(root.join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|it| it == "yaml") && !path.ends_with("kustomization.yaml") {
                files.push((path.display().to_string(), fs::read_to_string(&path).expect("a file")));
            }
        }
    }
    let findings = check(&files, "netferry.dev");
    assert!(findings.len() > 10, "only {} objects", findings.len());
    assert_eq!(findings.iter().flat_map(lines).collect::<Vec<_>>(), [""; 0]);
}
