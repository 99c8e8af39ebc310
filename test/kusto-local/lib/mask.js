// Takes secrets out of text before it is kept: SAS signatures, tokens, keys.

const RULES = [
  [/([?&;]|%3[fF]|%26)(sig|se|sv|st|sp|sr|tn|skoid)=[^&\s"'<>;]*/g, '$1$2=…'],
  [/\bBearer\s+[A-Za-z0-9._~+/=-]+/g, 'Bearer …'],
  [/\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*/g, '…'],
  [
    /(client_secret|client_assertion|access_token|authorizationContext)(["']?\s*[:=]\s*["']?)[^&"'\s,}]+/gi,
    '$1$2…',
  ],
];

export function maskSecrets(text) {
  let out = String(text);
  for (const [pattern, replacement] of RULES) out = out.replace(pattern, replacement);
  return out;
}

// The URL without its query: what Kusto itself shows as a source path.
export function withoutQuery(url) {
  return String(url).split(/[?;]/, 1)[0];
}
