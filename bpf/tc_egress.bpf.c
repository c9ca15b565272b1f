// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Notes every connection that this host opens, so that xdp_firewall lets the answers in. Never changes or drops a
 * packet, and always lets the next program run.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"
#include "conntrack.h"
#include "stats.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Always 0, which the verifier cannot know; see forget_path(). */
volatile __u32 nothing;

/* Enough for Ethernet, two tags, IPv6, two extension headers and TCP; asking for more than there is fails. */
enum { HEADERS_MAX = 192 };

SEC("tc")
int tc_egress(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	__u32 headers = skb->len < HEADERS_MAX ? skb->len : HEADERS_MAX;
	struct packet packet = { .nothing = nothing };
	int why;

	/* Headers may stand outside of the linear part (sendfile, tunnels): pull them in, then read the pointers again. */
	if (data + headers > data_end) {
		bpf_skb_pull_data(skb, headers); /* when it fails, the parser sees what there is */
		data = (void *)(long)skb->data;
		data_end = (void *)(long)skb->data_end;
	}
	why = parse_frame(data, data_end, &packet) + packet.nothing;
	forget_path(&packet);
	if (!why && packet.fragment != LATER_FRAGMENT &&
	    !conn_leaving(&packet)) {
		struct fw_misc_count *count = misc_count();

		if (count)
			count->conn_full++;
	}
	return TCX_NEXT;
}
