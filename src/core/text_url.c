/*
 * text_url.c
 *	  URLs, cut into slices of the original text (RFC 3986).
 *
 * Strict on purpose: what two parsers could read differently is refused,
 * since we decide by our reading whether a host may get a token and libcurl
 * connects by its own.  No error repeats the URL, which may hold a SAS.
 */
#include "text.h"

#include <string.h>

#include "ascii.h"

/* ---- hosts ---- */

/* Four decimal numbers as inet_pton() takes them; *first gets the first. */
static bool
parse_ipv4(KcSlice host, int *first)
{
	size_t		at = 0;

	for (int part = 0; part < 4; part++)
	{
		size_t		start = at;
		int			value = 0;

		while (at < host.len && at - start < 3 && kc_ascii_is_digit(host.data[at]))
			value = value * 10 + (host.data[at++] - '0');
		if (at == start || value > 255 || (host.data[start] == '0' && at - start > 1))
			return false;
		if (part == 0)
			*first = value;
		if (part < 3 && (at == host.len || host.data[at++] != '.'))
			return false;
	}
	return at == host.len;
}

/*
 * RFC 4291 section 2.2, without a zone: at most eight groups of at most four
 * digits, one "::" at most, perhaps an IPv4 address in place of the last two.
 */
static bool
parse_ipv6(KcSlice host, uint16_t groups[8])
{
	size_t		at = 0;
	int			n = 0;
	int			gap = -1;

	memset(groups, 0, 8 * sizeof(uint16_t));
	if (host.len >= 2 && host.data[0] == ':' && host.data[1] != ':')
		return false;
	while (at < host.len)
	{
		size_t		start = at;
		unsigned	value = 0;
		int			first;

		if (host.data[at] == ':')
		{
			/* the second colon of "::", or of a leading one */
			if (gap >= 0 || (at == 0 && (host.len < 2 || host.data[1] != ':')))
				return false;
			gap = n;
			at += at == 0 ? 2 : 1;
			continue;
		}
		if (n == 8)
			return false;
		if (n <= 6 && parse_ipv4(kc_slice_n(host.data + at, host.len - at), &first))
		{
			n += 2;
			break;
		}
		while (at < host.len && at - start < 4 && kc_ascii_hex(host.data[at]) >= 0)
			value = value * 16 + (unsigned) kc_ascii_hex(host.data[at++]);
		if (at == start)
			return false;
		groups[n++] = (uint16_t) value;
		if (at == host.len)
			break;
		if (host.data[at++] != ':' || at == host.len)
			return false;
	}
	if (gap < 0)
		return n == 8;
	if (n > 7)
		return false;
	memmove(groups + 8 - (n - gap), groups + gap, (size_t) (n - gap) * sizeof(uint16_t));
	memset(groups + gap, 0, (size_t) (8 - n) * sizeof(uint16_t));
	return true;
}

bool
kc_host_is_ip(KcSlice host)
{
	uint16_t	groups[8];
	int			first;

	return parse_ipv4(host, &first) || parse_ipv6(host, groups);
}

bool
kc_host_is_loopback(KcSlice host)
{
	uint16_t	groups[8];
	int			first;

	if (kc_slice_ieq(host, kc_slice("localhost")))
		return true;
	if (parse_ipv4(host, &first))
		return first == 127;
	if (!parse_ipv6(host, groups))
		return false;
	for (int i = 0; i < 7; i++)
	{
		if (groups[i] != 0)
			return false;
	}
	return groups[7] == 1;
}

/* ---- URLs ---- */

static KcStatus
refuse(KcError *err, const char *why)
{
	return kc_error_set(err, KC_ERR_INVALID, "reading a URL", "%s", why);
}

/* What may stand in a URL at all, brackets and percent signs included. */
static bool
is_url_char(char c)
{
	return kc_ascii_is_alnum(c) || (c != '\0' && strchr("-._~:/?#[]@!$&'()*+,;=%", c) != NULL);
}

/*
 * A name that DNS could resolve.  An underscore is no letter of a host name,
 * but container hosts have it.
 */
static bool
is_host_name(KcSlice host)
{
	if (host.len == 0 || host.len > 253 || host.data[0] == '.' || host.data[0] == '-')
		return false;
	for (size_t i = 0; i < host.len; i++)
	{
		char		c = host.data[i];

		if (!kc_ascii_is_alnum(c) && c != '-' && c != '.' && c != '_')
			return false;
		if (c == '.' && i > 0 && host.data[i - 1] == '.')
			return false;
	}
	return true;
}

static bool
parse_port(KcSlice digits, int *port)
{
	int			value = 0;

	if (digits.len == 0 || digits.len > 5)
		return false;
	for (size_t i = 0; i < digits.len; i++)
	{
		if (!kc_ascii_is_digit(digits.data[i]))
			return false;
		value = value * 10 + (digits.data[i] - '0');
	}
	*port = value;
	return value >= 1 && value <= 65535;
}

/* host[:port] */
static KcStatus
parse_authority(KcSlice text, KcUrl *url, KcError *err)
{
	const char *colon;
	size_t		host_end = text.len;
	uint16_t	groups[8];

	if (text.len > 0 && text.data[0] == '[')
	{
		const char *close = memchr(text.data, ']', text.len);

		if (close == NULL)
			return refuse(err, "the URL has an opening bracket without a closing one");
		url->host = kc_slice_n(text.data + 1, (size_t) (close - text.data) - 1);
		url->host_is_ipv6 = true;
		if (!parse_ipv6(url->host, groups))
			return refuse(err, "the URL has brackets around what is not an IPv6 address");
		host_end = (size_t) (close - text.data) + 1;
		if (host_end < text.len && text.data[host_end] != ':')
			return refuse(err, "the URL has characters between its host and its port");
	}
	else
	{
		colon = text.len == 0 ? NULL : memchr(text.data, ':', text.len);
		if (colon != NULL)
			host_end = (size_t) (colon - text.data);
		url->host = kc_slice_n(text.data, host_end);
		if (!is_host_name(url->host))
			return refuse(err, "the URL has no valid host name");
	}

	url->port_explicit = host_end < text.len;
	if (url->port_explicit &&
		!parse_port(kc_slice_n(text.data + host_end + 1, text.len - host_end - 1), &url->port))
		return refuse(err, "the URL has an invalid port");
	return KC_OK;
}

static size_t
find_any(KcSlice text, size_t from, const char *stops)
{
	while (from < text.len && strchr(stops, text.data[from]) == NULL)
		from++;
	return from;
}

KcStatus
kc_url_parse(KcSlice text, KcUrl *url, KcError *err)
{
	size_t		host_at;
	size_t		path_at;
	size_t		query_at;
	KcStatus	status;

	memset(url, 0, sizeof(*url));
	for (size_t i = 0; i < text.len; i++)
	{
		if (text.data[i] == '#')
			return refuse(err, "the URL has a fragment");
		if (!is_url_char(text.data[i]))
			return refuse(err, "the URL has a character that a URL must not hold");
	}

	host_at = find_any(text, 0, ":");
	url->scheme = kc_slice_n(text.data, host_at);
	if (kc_slice_ieq(url->scheme, kc_slice("https")))
		url->port = 443;
	else if (kc_slice_ieq(url->scheme, kc_slice("http")))
		url->port = 80;
	else
		return refuse(err, "the URL does not begin with https:// or http://");
	if (!kc_slice_starts(kc_slice_n(text.data + host_at, text.len - host_at), kc_slice("://")))
		return refuse(err, "the URL does not begin with https:// or http://");
	host_at += 3;

	path_at = find_any(text, host_at, "/?");
	if (find_any(kc_slice_n(text.data, path_at), host_at, "@") < path_at)
		return refuse(err, "the URL has user information before its host");
	status = parse_authority(kc_slice_n(text.data + host_at, path_at - host_at), url, err);
	if (status != KC_OK)
		return status;
	url->origin = kc_slice_n(text.data, path_at);

	query_at = find_any(text, path_at, "?");
	url->path = kc_slice_n(text.data + path_at, query_at - path_at);
	if (query_at < text.len)
		query_at++;
	url->query = kc_slice_n(text.data + query_at, text.len - query_at);
	return KC_OK;
}

bool
kc_url_is_https(const KcUrl *url)
{
	return kc_slice_ieq(url->scheme, kc_slice("https"));
}

bool
kc_url_query_get(const KcUrl *url, const char *name, KcSlice *value)
{
	KcSlice		query = url->query;
	KcSlice		wanted = kc_slice(name);
	size_t		at = 0;

	while (at < query.len)
	{
		size_t		end = find_any(query, at, "&");
		size_t		equals = find_any(kc_slice_n(query.data, end), at, "=");

		if (kc_slice_eq(kc_slice_n(query.data + at, equals - at), wanted))
		{
			if (equals < end)
				equals++;
			*value = kc_slice_n(query.data + equals, end - equals);
			return true;
		}
		at = end + 1;
	}
	return false;
}

/* ---- percent-encoding ---- */

static bool
is_unreserved(char c)
{
	return kc_ascii_is_alnum(c) || c == '-' || c == '.' || c == '_' || c == '~';
}

void
kc_text_percent_encode(KcBuf *out, KcSlice text)
{
	static const char digits[] = "0123456789ABCDEF";

	for (size_t i = 0; i < text.len; i++)
	{
		unsigned char c = (unsigned char) text.data[i];
		char		form[3] = {'%', digits[c >> 4], digits[c & 15]};

		if (is_unreserved(text.data[i]))
			kc_buf_char(out, text.data[i]);
		else
			kc_buf_append(out, form, sizeof(form));
	}
}

bool
kc_text_percent_decode(KcBuf *out, KcSlice text)
{
	size_t		start = out->len;

	for (size_t i = 0; i < text.len; i++)
	{
		int			high;
		int			low;

		if (text.data[i] != '%')
		{
			kc_buf_char(out, text.data[i]);
			continue;
		}
		high = text.len - i > 2 ? kc_ascii_hex(text.data[i + 1]) : -1;
		low = text.len - i > 2 ? kc_ascii_hex(text.data[i + 2]) : -1;
		if (high < 0 || low < 0)
		{
			kc_buf_truncate(out, start);
			return false;
		}
		kc_buf_char(out, (char) (high * 16 + low));
		i += 2;
	}
	return true;
}
