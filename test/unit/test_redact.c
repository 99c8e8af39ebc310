/*
 * test_redact.c
 *	  Text with secrets, and what is left of it.
 */
#include "tap.h"

#include "core/redact.h"

static const char *
redacted(const char *text)
{
	static char buf[20000];
	size_t		len = strlen(text);

	must(len < sizeof(buf));
	memcpy(buf, text, len + 1);
	kc_redact(buf, &len);
	must(len <= strlen(text));
	buf[len] = '\0';
	return buf;
}

static void
test_forms(void)
{
	static const struct
	{
		const char *text;
		const char *want;
	}			cases[] = {
		/* URLs and SAS */
		{"PUT https://a.blob.core.windows.net/c/b?sv=2022&sig=abc%2Fd%3D failed",
		"PUT https://a.blob.core.windows.net/c/b?*** failed"},
		{"\"https://h/p?x\"", "\"https://h/p?*\""},
		{"https://h/p?", "https://h/p?"},
		{"/cont/blob?sv=2022&se=2026&sig=abcdef", "/cont/blob?***"},
		{"sv=2022&sig=abcdef&se=2026 rest", "sv=2022&sig=*** rest"},
		{"%73ig=abcdef", "%73ig=***"},
		{"SIG=abcdef", "SIG=***"},
		{"https%3A%2F%2Fh%2Fp%3Fsv%3D1%26sig%3Dabc%252F, rest", "https%3A%2F%2Fh%2Fp%3F*** rest"},
		{"{\"u\":\"https:\\/\\/h\\/p?sv=1\\u0026sig=abcdef\",\"x\":1}",
		"{\"u\":\"https:\\/\\/h\\/p?***\",\"x\":1}"},
		{"<Uri>https://h/p?sv=1&amp;sig=abcdef</Uri>", "<Uri>https://h/p?***</Uri>"},
		{"sv=1\\u0026sig\\u003dabcdef\"", "sv=1\\u0026sig\\u003d***\""},
		/* user information */
		{"https://user:pass@host/x", "https://***@host/x"},
		{"proxy http://user@host:8080", "proxy http://***@host:8080"},
		{"https://us%40er:p%3Ass@host", "https://***@host"},
		{"https%3A%2F%2Fuser%3Apass%40host", "https%3A%2F%2F***%40host"},
		{"cut in https://user:pas", "cut in https://***"},
		{"at https://host:8443", "at https://host:8443"},
		{"at https://[::1]:8443", "at https://[::1]:8443"},
		{"mail https://host/a@b", "mail https://host/a@b"},
		/* Authorization */
		{"Bearer abc.def-123~+/=", "Bearer ***"},
		{"bearer%20abcdef", "bearer%20***"},
		{"Bearer \"abcdef\" x", "Bearer \"***\" x"},
		{"the bearer token is wrong", "the bearer token is wrong"},
		{"Bearer authentication.", "Bearer authentication."},
		{"Authorization: Digest username=\"u\", response=\"abc\"", "Authorization: ***"},
		{"authorization = SharedKey acct:abcdef=\nnext: line", "authorization = ***\nnext: line"},
		{"Basic dXNlcjpwYXNz", "Basic ***"},
		{"basic information", "basic information"},
		{"SharedKey acct:abcdef=", "SharedKey ***"},
		{"SharedAccessSignature sr=x&sig=abc", "SharedAccessSignature ***"},
		{"Cookie: a=b; c=d", "Cookie: ***"},
		/* members */
		{"{\"access_token\":\"abc\\\"def\",\"token_type\":\"Bearer\"}",
		"{\"access_token\":\"***\",\"token_type\":\"Bearer\"}"},
		{"{\"Client_Secret\" : \"abcdef\"}", "{\"Client_Secret\" : \"***\"}"},
		{"{'password': 'it''s', 'x': 1}", "{'password': '***', 'x': 1}"},
		{"{\\\"refresh_token\\\":\\\"abc\\\\\\\"def\\\",\\\"x\\\":1}",
		"{\\\"refresh_token\\\":\\\"***\\\",\\\"x\\\":1}"},
		/* an escaped backslash, not a quote: the value goes on */
		{"\"SharedAccessSignature\":\"7\\\\u0022xsig={x\\\"q\\\\\\\\\\\"]\\\"abcdefg\"",
		"\"SharedAccessSignature\":\"***\""},
		{"\\u0022id_token\\u0022:\\u0022abcdef\\u0022,1", "\\u0022id_token\\u0022:\\u0022***\\u0022,1"},
		{"%7B%22client_secret%22%3A%22abcdef%22%2C1", "%7B%22client_secret%22%3A%22***%22%2C1"},
		{"&quot;client_secret&quot;:&quot;abcdef&quot;,1", "&quot;client_secret&quot;:&quot;***&quot;,1"},
		{"%22key%22%3A%22a%255C%5C%22secret%22,", "%22key%22%3A%22***%22,"},
		{"%2522key%2522%253A%2522a%255C%2522secret%2522,", "%2522key%2522%253A%2522***%2522,"},
		{"%5C%22key%5C%22%3A%5C%22abcdef%5C%22", "%5C%22key%5C%22%3A***"},
		{"&quot;key&quot;:&quot;ab\\&quot;cdef&quot;", "&quot;key&quot;:&quot;***&quot;"},
		{"%22key%22%3A%22abcdef\n%22", "%22key%22%3A%22***\n%22"},
		{"%22key%22%3A%22abcdef", "%22key%22%3A%22***"},
		{"{\\\"key\\\":\\n  \\\"abcdef\\\"}", "{\\\"key\\\":\\n  \\\"***\\\"}"},
		{"{\"authorizationContext\":\"abcdef\"}", "{\"authorizationContext\":\"***\"}"},
		{"{\"key\":12345,\"x\":1}", "{\"key\":***\"x\":1}"},
		{"{\"secret\":{\"a\":[\"abcdef\"]},\"x\":1}", "{\"secret\":***\"x\":1}"},
		{"{\"secret\":[\"abcdef\"", "{\"secret\":***"},
		{"grant_type=x&client_secret=a~b.c&scope=y", "grant_type=x&client_secret=***&scope=y"},
		{"client_assertion=abcdef&x=1", "client_assertion=***&x=1"},
		{"AccountName=a;AccountKey=abc/def==;Suffix=x", "AccountName=a;AccountKey=***;Suffix=x"},
		{"SharedAccessSignature=sv=1&sig=abcdef", "SharedAccessSignature=***"},
		{"<AccountKey>abcdef</AccountKey>", "<AccountKey>***</AccountKey>"},
		{"client_secret => 'abcdef', x", "client_secret => '***', x"},
		{"{\"token\":\"\"}", "{\"token\":\"\"}"},
		{"{\"token\":\"ab\"}", "{\"token\":\"**\"}"},
		{"{\"token\":\"cut off her", "{\"token\":\"***"},
		{"the token: expected a string", "the token: expected a string"},
		{"token: abcdef123", "token: ***"},
		{"no key", "no key"},
		{"keys: 1", "keys: 1"},
		{"sig", "sig"},
		{"sig=", "sig="},
		/* JWT */
		{"got eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.c2ln, rest", "got ***, rest"},
		{"got eyJhbGciOiJub25lIn0%2EeyJzdWIiOi", "got ***"},
		{"got eyJhbGciOi", "got ***"},
		{"eyJab", "eyJab"},
		/* neighbours must not hide each other */
		{"token=\"client_secret\":\"abcdef\"", "token=\"***\":\"***\""},
		{"x%7?sv=1&sig=abcdef", "x%7?***"},
		{"%Bearer abcdef", "%Bearer ***"},
		{"\\u003access_token=abcdef", "\\u003access_token=***"},
		/* nothing secret */
		{"", ""},
		{"100% sure? yes \\ & no", "100% sure? yes \\ & no"},
		{"what? a=b", "what? a=b"},
		{"why?a/b=c", "why?a/b=c"},
		{"\xC3\xBC\xE2\x82\xAC \xF0\x9F\x98\x80", "\xC3\xBC\xE2\x82\xAC \xF0\x9F\x98\x80"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		char		once[1000];

		is_str(redacted(cases[i].text), cases[i].want, cases[i].text);
		strcpy(once, redacted(cases[i].text));
		ok(strcmp(redacted(once), once) == 0, "a second time changes nothing");
	}
}

/* Every text of three forms, planted behind every prefix that could mislead. */
static void
test_prefixes(void)
{
	static const char *const forms[] = {
		"\"access_token\":\"S3cr3tS3cr3t\"", "client_secret=S3cr3tS3cr3t", "?sv=1&sig=S3cr3tS3cr3t",
		"Bearer S3cr3tS3cr3t", "https://u:S3cr3tS3cr3t@h", "eyJS3cr3tS3cr3t",
		"Authorization: Basic S3cr3tS3cr3t"
	};
	char		prefix[4] = "";
	char		text[100];
	int			leaks = 0;
	static const char chars[] = "%257beyJ\\u0&amp;?\"'=: /[{<>k\n";

	for (size_t i = 0; i < sizeof(chars); i++)
	{
		for (size_t j = 0; j < sizeof(chars); j++)
		{
			prefix[0] = chars[i];
			prefix[1] = chars[j];
			for (size_t f = 0; f < sizeof(forms) / sizeof(forms[0]); f++)
			{
				snprintf(text, sizeof(text), "%s%s tail", prefix, forms[f]);
				if (strstr(redacted(text), "S3cr3t") != NULL)
				{
					leaks++;
					diag("leak: %s", text);
				}
			}
		}
	}
	is(leaks, 0, "no prefix of two characters lets a secret through");
}

static void
test_many(void)
{
	char		text[10000];
	size_t		at = 0;
	const char *result;
	int			at_signs = 0;

	for (int i = 0; i < 200; i++)
		at += (size_t) sprintf(text + at, "http://u:S3cr3t%d@h ", i);
	result = redacted(text);
	ok(strstr(result, "S3cr3t") == NULL, "many secrets in one text");
	for (const char *p = result; *p != '\0'; p++)
		at_signs += *p == '@';
	ok(at_signs >= 60, "of which the first are replaced one by one");

	memset(text, 'x', 500);
	strcpy(text + 500, "_token=S3cr3tS3cr3t");
	ok(strstr(redacted(text), "S3cr3t") == NULL, "a very long name");
	strcpy(text, "token");
	memset(text + 5, ' ', 30);
	strcpy(text + 35, "= x");
	is_str(redacted(text), text, "a separator too far away");
}

int
main(void)
{
	test_forms();
	test_prefixes();
	test_many();
	return done_testing();
}
