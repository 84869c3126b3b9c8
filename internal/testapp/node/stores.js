// express-session with connect-redis on one of its clients, asked for pages by real HTTP requests: see stores.go.
const http = require('http')
const session = require('express-session')
const signature = require('cookie-signature')
const [library, url, kept] = process.argv.slice(2)

// connect returns a store on what url says, and what ends its connection.
async function connect (url) {
  if (library === 'ioredis') {
    const client = new (require('ioredis'))(url)
    client.on('error', err => console.error(err))
    return { store: new (require('connect-redis-8').RedisStore)({ client }), end: () => client.quit() }
  }
  const [name, RESP] = library.split(', RESP')
  const client = require(name).createClient({ url, database: Number(new URL(url).pathname.slice(1)), ...(RESP && { RESP: Number(RESP) }) }) // 5.8.0 overlooks that of the URL
  client.on('error', err => console.error(err))
  await client.connect()
  return { store: new (require('connect-redis').RedisStore)({ client }), end: () => client.close() }
}

const say = (step, value) => console.log(step + ': ' + JSON.stringify(value))

// pages are what an application does with its session.
const pages = {
  read: () => {},
  set: (s, { name, value }) => { s[name] = value },
  live: (s, { ms }) => { s.cookie.maxAge = ms },
  count: s => { s.n = (s.n || 0) + 1 },
  touch: s => s.touch(),
  regenerate: (s, { name }, req) => new Promise((resolve, reject) => {
    const value = s[name]
    s.regenerate(err => { req.session[name] = value; err ? reject(err) : resolve() })
  }),
  reload: s => new Promise((resolve, reject) => s.reload(err => err ? reject(err) : resolve())),
  save: (s, { name, value }) => new Promise((resolve, reject) => { s[name] = value; s.save(err => err ? reject(err) : resolve()) }),
  destroy: s => new Promise((resolve, reject) => s.destroy(err => err ? reject(err) : resolve()))
}

async function serve (store) {
  const middleware = session({ store, secret: 's', resave: false, saveUninitialized: false, cookie: { maxAge: 3600e3 } })
  const server = http.createServer(async (req, res) => {
    let body = ''
    for await (const part of req.setEncoding('utf8')) body += part
    const page = JSON.parse(body)
    const end = value => res.end(JSON.stringify(value))
    middleware(req, res, async err => {
      if (err) return end({ error: err.message })
      try {
        await pages[page.do](req.session, page, req)
        const { cookie, ...data } = req.session || {}
        end(data)
      } catch (err) {
        end({ error: err.message })
      }
    })
  })
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  return server.address().port
}

async function main () {
  const { store, end } = await connect(url)
  const port = await serve(store)

  // browser returns what asks for pages, and keeps the cookie.
  const browser = cookie => async (page, args) => {
    const res = await fetch(`http://127.0.0.1:${port}/`, { method: 'POST', headers: cookie ? { cookie } : {}, body: JSON.stringify({ do: page, ...args }) })
    const set = res.headers.get('set-cookie')
    const value = await res.json()
    if (set) cookie = set.split(';')[0]
    browser.last = cookie
    return [value, set ? 'new cookie' : 'no cookie']
  }
  const idOf = cookie => decodeURIComponent(cookie).slice('connect.sid=s:'.length).split('.')[0]
  const get = (store, id) => new Promise((resolve, reject) => store.get(id, (err, s) => err ? reject(err) : resolve(s)))

  const a = browser()
  say('nothing is kept', await a('read'))
  say('begin', await a('set', { name: 'user', value: 'alice' }))
  const first = browser.last
  say('read', await a('read'))
  say('touch', await a('touch'))
  say('change', await a('set', { name: 'user', value: 'Grüße 🍀\r\n\0' }))
  say('read', await a('read'))
  say('save', await a('save', { name: 'n', value: 7 }))
  say('reload', await a('reload'))
  say('large', (await a('set', { name: 'b', value: 'x'.repeat(300000) }))[1])
  say('read', (await a('read'))[0].b.length)
  say('small', (await a('set', { name: 'b', value: '' }))[0])
  say('live longer', await a('live', { ms: 7200e3 }))
  say('unknown id', await browser('connect.sid=' + encodeURIComponent('s:' + signature.sign('nobody', 's')))('set', { name: 'user', value: 'eve' }))
  say('not taken over', await get(store, 'nobody'))
  say('regenerate', await a('regenerate', { name: 'user' }))
  say('read', await a('read'))
  say('the old one', await browser(first)('read'))
  say('destroy', await a('destroy'))
  say('read', await a('read'))

  const b = browser()
  await b('set', { name: 'user', value: 'bob' })
  say('live for a second', await b('live', { ms: 1000 }))
  const short = idOf(browser.last)
  while (await get(store, short)) await new Promise(resolve => setTimeout(resolve, 20))
  say('read', await b('read'))

  // Many at once, over one connection.
  const all = await Promise.all([...Array(20).keys()].map(async n => {
    const one = browser()
    await one('set', { name: 'user', value: 'user' + n })
    const read = await Promise.all([...Array(10).keys()].map(() => one('read')))
    const right = read.every(([s]) => s.user === 'user' + n)
    if (n > 1) await one('destroy')
    return right
  }))
  say('at once', all.every(Boolean))
  const c = browser()
  for (let i = 0; i < 20; i++) await c('count')
  say('count', await c('count'))
  await end()

  const there = await connect(kept)
  say('kept', (await get(there.store, idOf(browser.last))).n)
  await there.end()
  process.exit(0)
}

main().catch(err => { console.error(err); process.exit(1) })
