// What the commands' syntax has in common.
import { KustoError } from './errors.js';

// The first words of a command.
export const asIs = (words, flags = 'i') => new RegExp(`^${words.replaceAll(' ', '\\s+')}(?![\\w-])`, flags);

// with (key = value, …) → { key: value }
export function properties(parser) {
  const found = {};
  if (!parser.take('with')) return found;
  parser.expect('(');
  if (parser.take(')')) return found;
  parser.list(() => {
    const key = parser.name();
    parser.expect('=');
    const { kind, value } = parser.token;
    parser.at += 1;
    found[key] = kind === 'name' && /^(true|false)$/i.test(value) ? value.toLowerCase() === 'true' : value;
  });
  parser.expect(')');
  return found;
}

export function finish(parser) {
  parser.take(';');
  if (parser.token.kind !== 'end')
    throw KustoError.syntax(`unexpected '${parser.token.value}' at the end of the command`);
}
