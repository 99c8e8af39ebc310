/*
 * test_text_url.c
 *	  URLs and hosts.
 */
#include "tap.h"

#include "core/text.h"

static void
test_parts(void)
{
	KcUrl		url;
	KcError		err;
	KcSlice		value;
	static const char sas[] =
		"https://acct.blob.core.windows.net:8443/cont/a.csv.gz"
		"?sv=2022-11-02&se=2026-09-01T10%3A11Z&empty=&flag&sig=a%2Fb%3D";

	must(kc_url_parse(kc_slice(sas), &url, &err) == KC_OK);
	is_slice(url.scheme, "https", "scheme");
	is_slice(url.host, "acct.blob.core.windows.net", "host");
	is(url.port, 8443, "port");
	ok(url.port_explicit, "which stood there");
	is_slice(url.origin, "https://acct.blob.core.windows.net:8443", "origin");
	is_slice(url.path, "/cont/a.csv.gz", "path");
	ok(kc_url_is_https(&url), "https");
	ok(kc_url_query_get(&url, "se", &value), "a parameter");
	is_slice(value, "2026-09-01T10%3A11Z", "stays encoded");
	ok(kc_url_query_get(&url, "sig", &value), "the last parameter");
	is_slice(value, "a%2Fb%3D", "up to the end");
	ok(kc_url_query_get(&url, "empty", &value) && value.len == 0, "an empty one");
	ok(kc_url_query_get(&url, "flag", &value) && value.len == 0, "one without a value");
	ok(!kc_url_query_get(&url, "si", &value), "a prefix is not the name");
	ok(!kc_url_query_get(&url, "none", &value), "one that is not there");

	must(kc_url_parse(kc_slice("HTTP://[::1]"), &url, &err) == KC_OK);
	is_slice(url.host, "::1", "IPv6 host without brackets");
	ok(url.host_is_ipv6, "known as such");
	is(url.port, 80, "default port of http");
	ok(!url.port_explicit, "which did not stand there");
	is_slice(url.origin, "HTTP://[::1]", "origin as written");
	is(url.path.len, 0, "no path");
	is(url.query.len, 0, "no query");
	ok(!kc_url_is_https(&url), "not https");
	ok(!kc_url_query_get(&url, "x", &value), "no parameters");

	must(kc_url_parse(kc_slice("https://[::1]:444?a=?b/c"), &url, &err) == KC_OK);
	is(url.port, 444, "port behind IPv6");
	is_slice(url.query, "a=?b/c", "query without a path");
	must(kc_url_parse(kc_slice("https://h?"), &url, &err) == KC_OK);
	is(url.query.len, 0, "an empty query");
	is(url.port, 443, "default port of https");
	must(kc_url_parse(kc_slice("https://h/a@b:c"), &url, &err) == KC_OK);
	is_slice(url.path, "/a@b:c", "@ and : in a path");
}

static void
test_refused(void)
{
	static const struct
	{
		const char *url;
		const char *why;
	}			cases[] = {
		{"", "begin with https"},
		{"https", "begin with https"},
		{"https:/h", "begin with https"},
		{"ftp://h", "begin with https"},
		{"file:///etc/passwd", "begin with https"},
		{"//h/x", "begin with https"},
		{"https://", "no valid host"},
		{"https:///x", "no valid host"},
		{"https://?x", "no valid host"},
		{"https://:443", "no valid host"},
		{"https://.h", "no valid host"},
		{"https://-h", "no valid host"},
		{"https://a..b", "no valid host"},
		{"https://a%2eb", "no valid host"},
		{"https://a,b", "no valid host"},
		{"https://u:p@h/", "user information"},
		{"https://u@h", "user information"},
		{"https://h#frag", "fragment"},
		{"https://h/#", "fragment"},
		{"https://h/a b", "character"},
		{"https://h/\x01", "character"},
		{"https://h/\xC3\xBC", "character"},
		{"https://h\\@evil/", "character"},
		{"https://h/\"", "character"},
		{"https://h/\n", "character"},
		{"https://h:", "invalid port"},
		{"https://h:0", "invalid port"},
		{"https://h:65536", "invalid port"},
		{"https://h:4a", "invalid port"},
		{"https://h:1:2", "invalid port"},
		{"https://h:000443", "invalid port"},
		{"https://[::1", "opening bracket"},
		{"https://[]", "not an IPv6"},
		{"https://[1.2.3.4]", "not an IPv6"},
		{"https://[::1%25eth0]", "not an IPv6"},
		{"https://[::1]x", "between its host and its port"},
	};
	KcUrl		url;
	KcError		err;
	char		long_host[300] = "https://";

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		is(kc_url_parse(kc_slice(cases[i].url), &url, &err), KC_ERR_INVALID, cases[i].why);
		ok(strstr(err.what, cases[i].why) != NULL, "says why: %s", err.what);
	}
	memset(long_host + 8, 'h', 254);
	is(kc_url_parse(kc_slice(long_host), &url, &err), KC_ERR_INVALID, "a host too long");
	long_host[8 + 253] = '\0';
	is(kc_url_parse(kc_slice(long_host), &url, &err), KC_OK, "the longest host");
	is(kc_url_parse(kc_slice_n("https://h/\0x", 12), &url, &err), KC_ERR_INVALID, "NUL");
	is(kc_url_parse(KC_SLICE_NULL, &url, NULL), KC_ERR_INVALID, "nothing at all");
}

static void
test_hosts(void)
{
	static const char *const loopback[] = {
		"localhost", "LOCALHOST", "127.0.0.1", "127.255.255.254", "::1", "0:0:0:0:0:0:0:1", "0::0:1"
	};
	static const char *const ip[] = {
		"1.2.3.4", "255.255.255.255", "0.0.0.0", "::", "1::", "::ffff:1.2.3.4", "fe80::1:2",
		"1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1:2:3:4:5:6:1.2.3.4", "ABCD::ef01"
	};
	static const char *const names[] = {
		"", "localhost.evil.example", "127.0.0.1.evil.example", "127.1", "0x7f.0.0.1", "2130706433",
		"256.0.0.1", "1.2.3", "1.2.3.4.", "1.2.3.4.5", "01.2.3.4", "1..2.3", "1.2.3.", ":", ":::",
		":1", "1:", "1:2", "1::2::3", "12345::", "::g", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7:8::",
		"::1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:1.2.3.4", "::1.2.3", "::1.2.3.4:5", "x"
	};

	for (size_t i = 0; i < sizeof(loopback) / sizeof(loopback[0]); i++)
		ok(kc_host_is_loopback(kc_slice(loopback[i])), "loopback: %s", loopback[i]);
	for (size_t i = 0; i < sizeof(ip) / sizeof(ip[0]); i++)
	{
		ok(kc_host_is_ip(kc_slice(ip[i])), "an address: %s", ip[i]);
		ok(!kc_host_is_loopback(kc_slice(ip[i])), "not loopback: %s", ip[i]);
	}
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
	{
		ok(!kc_host_is_ip(kc_slice(names[i])), "no address: %s", names[i]);
		ok(!kc_host_is_loopback(kc_slice(names[i])), "nor loopback");
	}
	ok(kc_host_is_ip(kc_slice("127.0.0.1")) && kc_host_is_ip(kc_slice("::1")),
	   "loopback addresses are addresses");
}

int
main(void)
{
	test_parts();
	test_refused();
	test_hosts();
	return done_testing();
}
