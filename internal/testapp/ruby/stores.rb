# Rack's and Rails' sessions in Redis, asked for pages through their middleware: see stores.go.
require 'json'
require 'rack'
library, url, kept = ARGV

case library
when 'redis-rack'
  require 'rack/session/redis'
else
  require 'action_dispatch'
  require 'active_support'
  require 'active_support/core_ext'
    require 'redis-actionpack'
  require 'active_support/cache/redis_cache_store'
end

# page does with its session what is asked for.
page = lambda do |env|
  s, what = env['rack.session'], JSON.parse(env['rack.input'].read)
  case what.delete('do')
  when 'set' then what.each { |k, v| s[k] = v }
  when 'drop' then s.delete(what['name'])
  when 'count' then s['n'] = (s['n'] || 0) + 1
  when 'live'
    env['rack.session.options'][:expire_after] = what['for']
    s['n'] = 0
  when 'peek' # any other page begins the lifetime again
    s.to_hash
    env['rack.session.options'][:skip] = true
  when 'renew' then env['rack.session.options'][:renew] = true
  when 'destroy' then library == 'redis-rack' ? s.destroy : ActionDispatch::Request.new(env).reset_session
  end
  [200, {}, [JSON.generate(env['rack.session'].to_hash)]]
end

middleware = lambda do |url|
  options = { key: 'sid', expire_after: 3600, threadsafe: true }
  case library
  when 'redis-rack'
    Rack::Session::Redis.new(page, redis_server: "#{url}/rack:session", **options)
  when 'redis-actionpack'
    store = ActionDispatch::Session::RedisStore.new(page, servers: ["#{url}/rails:session"], **options)
    ActionDispatch::Cookies.new(store)
  when 'Rails'
    cache = ActiveSupport::Cache::RedisCacheStore.new(url: url, namespace: 'rails')
    ActionDispatch::Cookies.new(ActionDispatch::Session::CacheStore.new(page, cache: cache, **options))
  end
end

def say(step, value)
  puts "#{step}: #{JSON.generate(value)}"
end

# A browser keeps the cookie, and says when it is a new one.
class Browser
  attr_accessor :id

  def initialize(app, id = nil)
    @app, @id = app, id
  end

  def ask(what, args = {})
    res = Rack::MockRequest.new(@app).post('/', 'HTTP_COOKIE' => @id ? "sid=#{@id}" : '', :input => JSON.generate(args.merge(do: what)))
    before = @id
    found = /\bsid=([^;]*)/.match(res['Set-Cookie'].to_s)
    @id = found[1] if found
    [JSON.parse(res.body), @id == before ? 'same id' : 'new id']
  end
end

app = middleware.call(url)
browser = ->(id = nil) { Browser.new(app, id) }
a = browser.call
say 'nothing is kept', a.ask('read')
say 'begin', a.ask('set', user: 'alice')
first = a.id
say 'read', a.ask('read')
say 'change', a.ask('set', user: "Grüße 🍀\r\n\0")
say 'read', a.ask('read')
say 'large', a.ask('set', b: 'x' * 300_000)[0]['b'].size
say 'read', a.ask('read')[0]['b'].size
say 'drop', a.ask('drop', name: 'b')
say 'unknown id', browser.call('0123456789abcdef0123456789abcdef').ask('set', user: 'eve')
say 'renew', a.ask('renew')
say 'read', a.ask('read')
say 'the old one', browser.call(first).ask('read')
gone = a.id
say 'destroy', a.ask('destroy')
say 'the old one', browser.call(gone).ask('read')

b = browser.call
b.ask('set', user: 'bob')
say 'live for a second', b.ask('live', for: 1)
short = b.id
sleep 0.02 while browser.call(short).ask('peek')[0].key?('user')
say 'read', browser.call(short).ask('read')

wrong = Queue.new
users = Array.new(20) do |n|
  one = browser.call
  [one, Thread.new do
    one.ask('set', user: "user#{n}")
    10.times { got = one.ask('read')[0]; wrong << got if got != { 'user' => "user#{n}" } }
    one.ask('destroy') if n > 1
  end]
end
users.each { |_, t| t.join }
say 'at once', Array.new(wrong.size) { wrong.pop }
c = browser.call
20.times { c.ask('count') }
say 'count', c.ask('count')

there = middleware.call(kept)
[c, users[0][0], users[1][0]].each { |one| say 'kept', Browser.new(there, one.id).ask('read') }
