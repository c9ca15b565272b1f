/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a direction of a TCP flow speaks, by the first bytes that it sends and not by its port. Only what these bytes leave no
 * doubt about; everything else is IDS_UNKNOWN, and userspace decides, which sees more of it. The number goes with each record.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"

/* The first bytes of the payload, and zeros behind them where it has fewer. */
struct payload_head {
	char byte[IDS_HEAD];
};

/* bpf_strncmp (5.17) wants its second string in read-only memory. */
#define SIGNATURE(name, text) static const char name[] = text
SIGNATURE(http_get, "GET ");
SIGNATURE(http_put, "PUT ");
SIGNATURE(http_post, "POST ");
SIGNATURE(http_head, "HEAD ");
SIGNATURE(http_delete, "DELETE ");
SIGNATURE(http_options, "OPTIONS ");
SIGNATURE(http_patch, "PATCH ");
SIGNATURE(http_trace, "TRACE ");
SIGNATURE(http_connect, "CONNECT ");
SIGNATURE(http_response, "HTTP/1.");
SIGNATURE(http2_preface, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
SIGNATURE(ssh_banner, "SSH-");
SIGNATURE(smtp_ehlo, "EHLO ");
SIGNATURE(smtp_helo, "HELO ");
SIGNATURE(smtp_lhlo, "LHLO ");
SIGNATURE(banner_220, "220");
SIGNATURE(word_smtp, "SMTP");
SIGNATURE(word_ftp, "FTP");
SIGNATURE(ftp_user, "USER anonymous");
SIGNATURE(ftp_auth, "AUTH TLS");
SIGNATURE(smb1_magic, "\xffSMB");
SIGNATURE(smb2_magic, "\xfeSMB");
SIGNATURE(smb3_magic, "\xfdSMB");

#define STARTS(text, string) (!bpf_strncmp(text, sizeof(string) - 1, string))

static __always_inline __u32 byte_at(const struct payload_head *head, __u32 at)
{
	return (__u8)head->byte[at];
}

static __always_inline bool is_http1(const struct payload_head *head)
{
	const char *text = head->byte;

	return STARTS(text, http_get) || STARTS(text, http_post) || STARTS(text, http_response) ||
	       STARTS(text, http_head) || STARTS(text, http_put) || STARTS(text, http_delete) ||
	       STARTS(text, http_options) || STARTS(text, http_patch) || STARTS(text, http_trace) ||
	       STARTS(text, http_connect);
}

/* A record of a handshake (RFC 8446 section 5.1) that begins with a client's or server's hello. */
static __always_inline bool is_tls(const struct payload_head *head)
{
	__u32 length = byte_at(head, 3) << 8 | byte_at(head, 4);

	return byte_at(head, 0) == 22 && byte_at(head, 1) == 3 && byte_at(head, 2) <= 4 && length >= 4 &&
	       length <= 16384 + 256 && (byte_at(head, 5) == 1 || byte_at(head, 5) == 2);
}

/* A message in its NetBIOS session or direct TCP frame ([MS-SMB2] section 2.1). */
static __always_inline bool is_smb(const struct payload_head *head)
{
	const char *magic = head->byte + 4;

	return !head->byte[0] && (STARTS(magic, smb2_magic) || STARTS(magic, smb1_magic) || STARTS(magic, smb3_magic));
}

/* RFC 1035 section 4.2.2: a length, and a header with one question, of a query or an answer, whose name can be one. */
static __always_inline bool is_dns(const struct payload_head *head, __u32 payload)
{
	__u32 length = byte_at(head, 0) << 8 | byte_at(head, 1), flags = byte_at(head, 4) << 8 | byte_at(head, 5);
	bool answer = flags & 0x8000;

	if (payload < 19 || length < 17 || flags & 0x7840) /* standard query, and the reserved bit */
		return false;
	if (byte_at(head, 6) || byte_at(head, 7) != 1) /* questions */
		return false;
	if (!answer && (byte_at(head, 8) | byte_at(head, 9) | byte_at(head, 10) | byte_at(head, 11) || flags & 15))
		return false; /* a query has no answer, no authority and no error */
	if (!answer && length + 2 < payload && flags & 0x0580)
		return false;
	return byte_at(head, 12) == 0 && byte_at(head, 13) < 16 && byte_at(head, 14) > 0 && byte_at(head, 14) < 64;
}

/* Whether a word stands in the banner's line. A function of its own, verified once. */
__noinline int banner_signature(const struct payload_head *head)
{
	volatile int found = IDS_UNKNOWN; /* in memory: else the verifier walks each place with each value */

	if (!head)
		return found;
#pragma clang loop unroll(disable)
	for (__u32 i = 4; i < IDS_HEAD - 4; i++) {
		const char *at = head->byte + i;

		if (*at == '\n')
			break;
		if (STARTS(at, word_smtp)) {
			found = IDS_SMTP;
			break;
		}
		if (STARTS(at, word_ftp)) {
			found = IDS_FTP;
			break;
		}
	}
	return found;
}

/* enum ids_signature of so many bytes of payload. A function of its own, verified once. */
__noinline int signature_of(const struct payload_head *head, __u32 payload)
{
	const char *text;

	if (!head)
		return IDS_UNKNOWN;
	text = head->byte;
	if (is_http1(head))
		return IDS_HTTP1;
	if (is_tls(head))
		return IDS_TLS;
	if (STARTS(text, http2_preface))
		return IDS_HTTP2;
	if (STARTS(text, ssh_banner))
		return IDS_SSH;
	if (is_smb(head))
		return IDS_SMB;
	if (STARTS(text, smtp_ehlo) || STARTS(text, smtp_helo) || STARTS(text, smtp_lhlo))
		return IDS_SMTP;
	if (STARTS(text, ftp_user) || STARTS(text, ftp_auth))
		return IDS_FTP;
	if (STARTS(text, banner_220) && (text[3] == ' ' || text[3] == '-'))
		return banner_signature(head);
	return is_dns(head, payload) ? IDS_DNS : IDS_UNKNOWN;
}
