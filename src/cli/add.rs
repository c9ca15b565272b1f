//! The arguments of `add` of the engines whose rules match packets.

/// The arguments of `add`: what all rules have, and between that what those of one engine have. Options are shown in
/// this order.
macro_rules! add_args {
    ($name:ident: $about:literal { $($verdict:tt)* } { $($state:tt)* } { $($more:tt)* }) => {
        #[doc = $about]
        #[derive(FromArgs, Default)]
        #[argh(subcommand, name = "add", help_triggers("-h", "--help"))]
        struct $name {
            /// the rule as JSON: the text, @FILE, or - for stdin
            #[argh(option, arg_name = "body")]
            json: Option<String>,

            /// take it back after so many seconds unless `config confirm` comes first
            #[argh(option, arg_name = "seconds")]
            confirm: Option<u32>,

            /// unique id
            #[argh(option)]
            id: Option<String>,

            /// namespace whose operators may change it
            #[argh(option, arg_name = "name")]
            namespace: Option<String>,

            /// lower numbers are asked first
            #[argh(option)]
            priority: Option<u32>,

            $($verdict)*

            /// tcp, udp, icmp, icmpv6, any, or a number
            #[argh(option)]
            protocol: Option<String>,

            /// source network
            #[argh(option, arg_name = "cidr")]
            src_ip: Option<String>,

            /// destination network
            #[argh(option, arg_name = "cidr")]
            dst_ip: Option<String>,

            /// source port, or range as 1024-65535
            #[argh(option, arg_name = "ports")]
            src_port: Option<String>,

            /// destination port, or range as 80-443
            #[argh(option, arg_name = "ports")]
            dst_port: Option<String>,

            /// VLAN id; 0 is untagged only
            #[argh(option, arg_name = "id")]
            vlan_id: Option<u16>,

            /// TCP flags as set/mask, such as S/SA
            #[argh(option, arg_name = "flags")]
            tcp_flags: Option<String>,

            /// ICMP type
            #[argh(option, arg_name = "number")]
            icmp_type: Option<String>,

            /// ICMP code
            #[argh(option, arg_name = "number")]
            icmp_code: Option<u8>,

            $($state)*

            /// interfaces, by commas
            #[argh(option, arg_name = "names")]
            interfaces: Option<String>,

            /// techniques of MITRE ATT&CK that it is a sign of, by commas
            #[argh(option, arg_name = "ids")]
            mitre: Option<String>,

            /// free text
            #[argh(option, arg_name = "text")]
            description: Option<String>,

            $($more)*

            /// keep the rule switched off
            #[argh(switch)]
            disabled: bool,
        }

        impl $name {
            /// What all rules have, as it stands in JSON; takes it out.
            fn common_keys(&mut self) -> Vec<Key> {
                vec![
                    ("id", self.id.take().map(Value::from)),
                    ("namespace", self.namespace.take().map(Value::from)),
                    ("priority", self.priority.map(Value::from)),
                    ("protocol", self.protocol.take().map(Value::from)),
                    ("src_ip", self.src_ip.take().map(Value::from)),
                    ("dst_ip", self.dst_ip.take().map(Value::from)),
                    ("src_port", self.src_port.take().map(number_or_text)),
                    ("dst_port", self.dst_port.take().map(number_or_text)),
                    ("vlan_id", self.vlan_id.map(Value::from)),
                    ("tcp_flags", self.tcp_flags.take().map(Value::from)),
                    ("icmp_type", self.icmp_type.take().map(number_or_text)),
                    ("icmp_code", self.icmp_code.map(Value::from)),
                    ("interfaces", self.interfaces.take().map(list)),
                    ("mitre", self.mitre.take().map(list)),
                    ("description", self.description.take().map(Value::from)),
                    ("enabled", self.disabled.then_some(Value::Bool(false))),
                ]
            }
        }
    };
}

pub(super) use add_args;
